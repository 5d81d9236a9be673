//! `towline`: the one binary. Parts meet here and nowhere else.
//!
//! One file a command. Results go to stdout, logs and progress to stderr; exit
//! codes are mapped in [`exit`] alone.

mod address;
mod bench;
mod config;
mod cutover;
mod daemon;
mod demo;
mod device;
mod exit;
mod journal;
mod logging;
mod mark;
mod metrics;
mod output;
mod pki;
mod prerequisite;
mod progress;
mod proxy;
mod receive;
mod report;
mod restart;
mod ship;
mod signals;
mod status;
mod store;
mod table;
mod target;
mod target_view;
mod terminal;
mod throttle;
mod view;
mod when;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use exit::Exit;
use std::process::ExitCode;
use tracing_subscriber::filter::LevelFilter;

/// Moves the disks of running virtual machines while they run.
#[derive(Debug, Parser)]
#[command(name = "towline", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a group's volumes and journal every change.
    Proxy(proxy::Args),
    /// Take a group's batches, and its place after a cutover.
    Receive(receive::Args),
    /// Drain a group's journal to its receiver.
    Ship(ship::Args),
    /// Show how groups are doing.
    Status(status::Args),
    /// Move the guest to the target.
    Cutover(cutover::Args),
    /// Name the point at which a group is now, to go back to at the target.
    Mark(mark::Args),
    /// Move the baseline on disks that travel.
    Device(device::Args),
    /// Keep a store small.
    Store(store::Args),
    /// Look at a target's marks and go back to one.
    Target(target::Args),
    /// Change how fast a group is shipped, at once.
    Throttle(throttle::Args),
    /// Look into a group's journal.
    Journal(journal::Args),
    /// Move a disk on this machine, with faults and a verdict.
    Demo(demo::Args),
    /// Measure on this machine's storage.
    Bench(bench::Args),
    /// Make certificates for shippers and receivers.
    Pki(pki::Args),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_parsed(&error).into(),
    };
    match run(cli.command) {
        Ok(exit) => exit.into(),
        Err(error) => {
            let (what, exit) = (exit::sentence(&error), exit::exit_of(&error));
            eprintln!("towline: {what}");
            output::failure(&what, exit.number());
            exit.into()
        }
    }
}

/// Help and version are what was asked for; all else is a usage error.
fn not_parsed(error: &clap::Error) -> Exit {
    // Nothing is left to be done where stderr cannot be written.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Ok,
        _ => {
            output::failure(error.to_string().trim_end(), Exit::Usage.number());
            Exit::Usage
        }
    }
}

fn run(command: Command) -> anyhow::Result<Exit> {
    logging::start(match &command {
        Command::Proxy(_) | Command::Receive(_) | Command::Ship(_) => LevelFilter::INFO,
        Command::Device(args) if args.is_daemon() => LevelFilter::INFO,
        _ => LevelFilter::WARN,
    })?;
    match command {
        Command::Proxy(args) => proxy::run(args),
        Command::Receive(args) => receive::run(args),
        Command::Ship(args) => ship::run(args),
        Command::Status(args) => status::run(&args),
        Command::Cutover(args) => cutover::run(&args),
        Command::Mark(args) => mark::run(&args),
        Command::Device(args) => device::run(args),
        Command::Store(args) => store::run(args),
        Command::Target(args) => target::run(&args),
        Command::Throttle(args) => throttle::run(&args),
        Command::Journal(args) => journal::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(args),
        Command::Pki(args) => pki::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_usage_and_help_have_their_exit_codes() {
        let exit = |args: &[&str]| not_parsed(&Cli::try_parse_from(args).unwrap_err());
        assert_eq!(exit(&["towline", "status"]), Exit::Usage);
        assert_eq!(exit(&["towline", "no-such-command"]), Exit::Usage);
        assert_eq!(exit(&["towline", "--help"]), Exit::Ok);
        assert_eq!(exit(&["towline", "--version"]), Exit::Ok);
    }
}
