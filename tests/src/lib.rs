//! The kit of the black-box tests: real processes of the real binary, real client
//! programs, a network that can be broken.
//!
//! Everything a test starts ends with it: daemons by their process ids, temporary
//! directories, rings in shared memory. Waiting is for events (a line, a reply, a
//! status), never for time to pass. What cannot run here is skipped with a reason
//! that is counted (`scripts/test`).

pub mod binary;
pub mod daemon;
pub mod judge;
pub mod machine;
pub mod powercut;
pub mod program;
pub mod relay;
pub mod rig;
pub mod skip;
pub mod status;
pub mod volatile;

pub use binary::towline;
pub use daemon::Daemon;
pub use judge::Side;
pub use program::{Finished, run};
pub use relay::{Direction, Relay};
pub use rig::Rig;
pub use status::Status;

use std::time::Duration;

/// How long anything may take that should take seconds: ample for two busy cores
/// and a debug build. Nothing passes or fails by being faster.
pub const PATIENCE: Duration = Duration::from_secs(60);
