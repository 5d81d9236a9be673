//! Records as lines on stdout and as objects in JSON.

use super::hexdump;
use crate::output::still_read;
use crate::table::count;
use crate::{terminal, when};
use serde::Serialize;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{BufWriter, StdoutLock, Write};
use towline_journal::inspect::{GroupView, SlotFault, kind_name};
use towline_journal::{Record, SlotState};

/// Bytes of a line's time of day, and where it begins in `2026-03-01T12:00:00.500000Z`.
const TIME_OF_DAY: std::ops::Range<usize> = 11..23;
/// Columns between a record's number and its volume: time, kind, state, all gaps.
const WIDE_COLUMNS: usize = 2 + 27 + 2 + 7 + 1 + 6 + 2;
/// Of a length: ` +1048576`.
const LEN_COLUMNS: usize = 9;
/// The number's column at least.
const SEQ_COLUMNS_MIN: usize = 5;

/// A record as it is shown.
#[derive(Serialize)]
pub struct RecordLine {
    pub seq: u64,
    /// RFC 3339, UTC; `null` when the record cannot be read.
    pub time: Option<String>,
    /// The record's kind; `unreadable` when its slot does not show it.
    pub kind: &'static str,
    /// The record's state; of an unreadable one, why.
    pub state: Cow<'static, str>,
    pub volume: Option<String>,
    pub offset: u64,
    pub len: u64,
    pub age_s: Option<f64>,
    /// The target has it durably.
    pub at_target: bool,
    /// Whether its payload passes its checksum; `null` without one, or when its room
    /// was given to a later record.
    pub payload_ok: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_hex: Option<String>,
    #[serde(skip)]
    payload: Option<Vec<u8>>,
    #[serde(skip)]
    payload_gone: bool,
}

/// How records are shown.
#[derive(Clone, Copy, Default)]
pub struct Form {
    /// So many bytes of each payload.
    pub payload_bytes: u64,
    pub json: bool,
    layout: Layout,
}

/// Widths of a line's columns, from what the group can have: they stay while records
/// stream by.
#[derive(Clone, Copy, Default)]
struct Layout {
    seq: usize,
    volume: usize,
    offset: usize,
    /// Too little room: the time of day alone, and the state only where it is not `done`.
    narrow: bool,
    columns: Option<usize>,
}

impl Form {
    pub fn new(view: &GroupView, payload_bytes: u64, json: bool) -> Form {
        Form { payload_bytes, json, layout: Layout::new(view, terminal::columns()) }
    }
}

impl Layout {
    fn new(view: &GroupView, columns: Option<usize>) -> Layout {
        let names = view.volume_names();
        let sizes = (0..names.len()).map(|volume| view.volume_size_bytes(volume));
        let digits = |number: u64| number.checked_ilog10().unwrap_or(0) as usize + 1;
        let seq = digits(view.marks().head).max(SEQ_COLUMNS_MIN);
        let volume = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let offset = digits(sizes.max().unwrap_or(0));
        let whole = seq + WIDE_COLUMNS + volume + 1 + offset + LEN_COLUMNS;
        let narrow = columns.is_some_and(|columns| whole > columns);
        Layout { seq, volume, offset, narrow, columns }
    }
}

impl RecordLine {
    pub fn of(view: &GroupView, record: &Record, acked: u64, form: Form) -> RecordLine {
        let age_ns = towline_journal::unix_now_ns().saturating_sub(record.unix_ns);
        let payload = record.has_payload().then(|| view.payload(record));
        let gone = matches!(payload, Some(None)) && !view.still_holds(record);
        let payload_ok = payload.as_ref().filter(|_| !gone).map(Option::is_some);
        let bytes = payload.flatten().filter(|_| form.payload_bytes > 0);
        let shown = |bytes: &[u8]| -> usize {
            usize::try_from(form.payload_bytes).unwrap_or(usize::MAX).min(bytes.len())
        };
        RecordLine {
            seq: record.seq,
            time: Some(when::format(record.unix_ns)),
            kind: kind_name(record),
            state: state_name(record.state).into(),
            volume: view.volume_name(record).map(str::to_owned),
            offset: record.extent.offset,
            len: record.extent.len,
            age_s: Some(age_ns as f64 / 1e9),
            at_target: record.seq <= acked,
            payload_ok,
            payload_hex: bytes
                .as_ref()
                .filter(|_| form.json)
                .map(|bytes| hexdump::digits(&bytes[..shown(bytes)])),
            payload: bytes.filter(|_| !form.json),
            payload_gone: gone,
        }
    }

    pub fn unreadable(seq: u64, fault: SlotFault, acked: u64) -> RecordLine {
        RecordLine {
            seq,
            time: None,
            kind: "unreadable",
            state: match fault {
                SlotFault::OtherRecord { .. } => "missing".into(),
                SlotFault::HeaderChecksum => "header checksum".into(),
                SlotFault::Field(field) => format!("field {field}").into(),
            },
            volume: None,
            offset: 0,
            len: 0,
            age_s: None,
            at_target: seq <= acked,
            payload_ok: None,
            payload_hex: None,
            payload: None,
            payload_gone: false,
        }
    }

    /// One line, and the payload below it where it was asked for.
    pub fn text(&self, form: &Form) -> String {
        let Layout { seq, volume, offset, narrow, columns } = form.layout;
        let Some(time) = &self.time else {
            return format!("{:>seq$}  unreadable: {}", self.seq, self.state);
        };
        // Writing to a String cannot fail.
        let mut line = if narrow {
            let time = time.get(TIME_OF_DAY).unwrap_or(time);
            format!("{:>seq$}  {time}  {:<7}  ", self.seq, self.kind)
        } else {
            format!("{:>seq$}  {time}  {:<7} {:<6}  ", self.seq, self.kind, self.state)
        };
        if let Some(name) = &self.volume {
            let _ = write!(line, "{name:<volume$}");
            if self.len > 0 {
                let _ = write!(line, " {:>offset$} +{}", self.offset, self.len);
            }
        }
        line.truncate(line.trim_end().len());
        if narrow && self.state != "done" {
            let _ = write!(line, "  {}", self.state);
        }
        line.push_str(match (self.payload_ok, self.payload_gone) {
            (Some(false), _) => "  payload damaged",
            (_, true) => "  payload gone",
            _ => "",
        });
        if let Some(payload) = &self.payload {
            let shown = form.payload_bytes.min(payload.len() as u64) as usize;
            line.push('\n');
            line.push_str(hexdump::text(&payload[..shown], self.offset, columns).trim_end());
            if shown < payload.len() {
                let left = count((payload.len() - shown) as u64, "byte");
                let _ = write!(line, "\n{:seq$}  and {left} more", "");
            }
        }
        line
    }
}

fn state_name(state: SlotState) -> &'static str {
    match state {
        SlotState::Empty => "empty",
        SlotState::Intent => "intent",
        SlotState::Done => "done",
        SlotState::Failed => "failed",
    }
}

/// Lines to stdout that notice when nobody reads them any more.
pub struct Lines {
    out: BufWriter<StdoutLock<'static>>,
}

impl Lines {
    pub fn stdout() -> Lines {
        Lines { out: BufWriter::with_capacity(1 << 16, std::io::stdout().lock()) }
    }

    /// Whether somebody still reads.
    pub fn print(&mut self, line: &str) -> anyhow::Result<bool> {
        still_read(writeln!(self.out, "{line}"))
    }

    pub fn flush(&mut self) -> anyhow::Result<bool> {
        still_read(self.out.flush())
    }
}
