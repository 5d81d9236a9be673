//! A monitor connection to QEMU's storage daemon: one JSON object a line.

use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const REPLY_WAIT: Duration = Duration::from_secs(30);

pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    pub(super) fn connect(socket: &Path) -> anyhow::Result<Qmp> {
        let stream = UnixStream::connect(socket).context("cannot reach QEMU's monitor")?;
        stream.set_read_timeout(Some(REPLY_WAIT))?;
        let mut qmp = Qmp { stream: BufReader::new(stream) };
        // Its greeting.
        qmp.line()?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// What the command returns. Events are passed over.
    pub(super) fn execute(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        let mut line = json!({"execute": command, "arguments": arguments}).to_string();
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes()).context("QEMU's monitor")?;
        loop {
            let mut reply = self.line()?;
            if let Some(error) = reply.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            if let Some(value) = reply.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn line(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).context("QEMU's monitor")? == 0 {
            bail!("QEMU's monitor closed");
        }
        serde_json::from_str(&line).with_context(|| format!("QEMU's monitor said {line:?}"))
    }
}
