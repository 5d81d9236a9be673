//! What shipper and receiver say to each other (docs/formats/wire.md).
//!
//! A frame is a fixed 16-byte header and a body. Bulk and its acknowledgement are
//! binary, conversation is JSON. A length is checked against its kind's limit
//! before anything is allocated.

mod ack;
mod frame;
mod message;

pub use ack::{ACK_BYTES, Ack, AckLayout};
pub use frame::{FRAME_HEADER_BYTES, FRAME_MAGIC, FrameHeader, FrameKind, JSON_BYTES_MAX};
pub use frame::{FrameWriter, read_frame, write_frame};
pub use message::{
    ATTEMPT_BYTES_MAX, Abort, Compared, Decision, Differing, Hello, Join, LACKS_RUNS_MAX, Lacks,
    Message, Outcome, PROTOCOL, Promote, Promoted, Refusal, RefusalCode, VOLUMES_MAX, VolumeSize,
    Welcome,
};
pub use message::{read_message, write_message};
