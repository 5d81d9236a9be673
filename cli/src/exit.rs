//! Exit codes, and the one place that decides which error becomes which.
//!
//! Commands return `anyhow::Result<Exit>`: `Ok` with the outcome they printed, or
//! an error. What an error means for the exit code is read from its type here,
//! never from its text.

use std::fmt;
use std::process::ExitCode;

/// What a script sees; the numbers are pinned by the interfaces of the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Ok,
    /// A check failed, or the action was refused or aborted.
    Failed,
    /// The command line or a configuration file cannot be used.
    Usage,
    /// The group or the process that was asked is not there.
    Unreachable,
}

impl Exit {
    pub fn number(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 64,
            Exit::Unreachable => 69,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.number())
    }
}

/// The user's command line or file has to change.
#[derive(Debug)]
pub struct Usage(pub String);

/// What was asked for is not there or does not answer.
#[derive(Debug)]
pub struct Unreachable(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}
impl std::error::Error for Unreachable {}

pub fn usage(what: impl Into<String>) -> anyhow::Error {
    Usage(what.into()).into()
}

pub fn unreachable(what: impl Into<String>) -> anyhow::Error {
    Unreachable(what.into()).into()
}

/// The error with its causes, for people. Some errors of the parts show their cause
/// already: nothing is said twice.
pub fn sentence(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// The exit code of a command that ended with `error`: the outermost cause with
/// a meaning of its own decides.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    error.chain().find_map(exit_of_cause).unwrap_or(Exit::Failed)
}

fn exit_of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if cause.is::<Usage>() {
        return Some(Exit::Usage);
    }
    if cause.is::<Unreachable>() {
        return Some(Exit::Unreachable);
    }
    if let Some(error) = cause.downcast_ref::<towline_block::Error>() {
        use towline_block::ErrorKind;
        return matches!(error.kind(), ErrorKind::InvalidInput).then_some(Exit::Usage);
    }
    if let Some(error) = cause.downcast_ref::<towline_journal::Error>() {
        use towline_journal::ErrorKind;
        return match error.kind() {
            ErrorKind::InvalidInput => Some(Exit::Usage),
            ErrorKind::Missing => Some(Exit::Unreachable),
            _ => None,
        };
    }
    if let Some(error) = cause.downcast_ref::<towline_shipper::Error>() {
        use towline_shipper::ErrorKind;
        return match error.kind() {
            ErrorKind::InvalidInput => Some(Exit::Usage),
            ErrorKind::Unreachable => Some(Exit::Unreachable),
            _ => None,
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn context_does_not_hide_the_exit_code() {
        let error = Err::<(), _>(usage("no such thing")).context("while starting").unwrap_err();
        assert_eq!(exit_of(&error), Exit::Usage);
        let error = Err::<(), _>(unreachable("gone")).context("status").unwrap_err();
        assert_eq!(exit_of(&error), Exit::Unreachable);
        assert_eq!(exit_of(&anyhow::anyhow!("anything else")), Exit::Failed);
    }

    #[test]
    fn no_cause_is_told_twice() {
        let missing = std::io::Error::from_raw_os_error(2);
        let inner = towline_block::Error::io("cannot open x", missing);
        let text = sentence(&anyhow::Error::from(inner).context("while starting"));
        assert!(text.starts_with("while starting: cannot open x: "), "{text}");
        assert_eq!(text.matches("os error 2").count(), 1, "{text}");
    }

    #[test]
    fn a_value_refused_by_the_disk_layer_is_a_usage_error() {
        let error = "NOT A NAME".parse::<towline_block::GroupName>().unwrap_err();
        assert_eq!(exit_of(&error.into()), Exit::Usage);
    }
}
