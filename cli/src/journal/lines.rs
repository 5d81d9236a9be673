//! Records as lines on stdout and as objects in JSON.

use super::hexdump;
use crate::when;
use serde::Serialize;
use std::io::{BufWriter, ErrorKind, StdoutLock, Write};
use towline_journal::Record;
use towline_journal::inspect::{GroupView, SlotFault, kind_name};

/// A record as it is shown.
#[derive(Serialize)]
pub struct RecordLine {
    pub seq: u64,
    /// RFC 3339, UTC; `null` when the record cannot be read.
    pub time: Option<String>,
    /// The record's kind; `unreadable` when its slot does not show it.
    pub kind: &'static str,
    /// The record's state; of an unreadable one, why.
    pub state: String,
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
    pub payload: bool,
    pub json: bool,
}

impl RecordLine {
    pub fn of(view: &GroupView, record: &Record, acked: u64, form: Form) -> RecordLine {
        let age_ns = towline_journal::unix_now_ns().saturating_sub(record.unix_ns);
        let payload = record.has_payload().then(|| view.payload(record));
        let gone = matches!(payload, Some(None)) && !view.still_holds(record);
        let bytes = payload.as_ref().and_then(Option::as_ref).filter(|_| form.payload);
        RecordLine {
            seq: record.seq,
            time: Some(when::format(record.unix_ns)),
            kind: kind_name(record),
            state: format!("{:?}", record.state).to_lowercase(),
            volume: view.volume_name(record),
            offset: record.extent.offset,
            len: record.extent.len,
            age_s: Some(age_ns as f64 / 1e9),
            at_target: record.seq <= acked,
            payload_ok: payload.as_ref().filter(|_| !gone).map(Option::is_some),
            payload_hex: bytes.filter(|_| form.json).map(|bytes| hexdump::digits(bytes)),
            payload: bytes.filter(|_| !form.json).cloned(),
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
                SlotFault::Field(field) => format!("field {field}"),
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
    pub fn text(&self) -> String {
        let Some(time) = &self.time else {
            return format!("{:>8}  unreadable: {}", self.seq, self.state);
        };
        let place = match &self.volume {
            Some(volume) if self.len > 0 => {
                format!("{volume:<10} {:>14} +{}", self.offset, self.len)
            }
            Some(volume) => volume.clone(),
            None => String::new(),
        };
        let mark = match (self.payload_ok, self.payload_gone) {
            (Some(false), _) => "  payload damaged",
            (_, true) => "  payload gone",
            _ => "",
        };
        let mut line =
            format!("{:>8}  {time}  {:<7} {:<6}  {place}", self.seq, self.kind, self.state);
        line.truncate(line.trim_end().len());
        line.push_str(mark);
        if let Some(payload) = &self.payload {
            line.push('\n');
            line.push_str(hexdump::text(payload, self.offset).trim_end_matches('\n'));
        }
        line
    }
}

/// Lines to stdout that notice when nobody reads them any more.
pub struct Lines {
    out: BufWriter<StdoutLock<'static>>,
}

impl Lines {
    pub fn stdout() -> Lines {
        Lines { out: BufWriter::new(std::io::stdout().lock()) }
    }

    /// Whether somebody still reads.
    pub fn print(&mut self, line: &str) -> anyhow::Result<bool> {
        still_read(writeln!(self.out, "{line}"))
    }

    pub fn flush(&mut self) -> anyhow::Result<bool> {
        still_read(self.out.flush())
    }
}

fn still_read(result: std::io::Result<()>) -> anyhow::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(anyhow::Error::from(e).context("cannot write the result to stdout")),
    }
}
