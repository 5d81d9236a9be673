//! `towline bench`: measuring on the administrator's own machine.

mod hidden;
mod impact;

use crate::exit::Exit;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Measure what the proxy costs a guest on this storage, beside other servers.
    Impact(impact::Args),
    /// Serve a file without a journal: the control of `bench impact`.
    #[command(hide = true)]
    Serve(hidden::ServeArgs),
    /// Compute until standard input ends: keeps a processor awake.
    #[command(hide = true)]
    Spin,
    /// Run a program that stands for another machine: it gives way to this one's.
    #[command(hide = true)]
    Elsewhere(hidden::ElsewhereArgs),
}

pub fn run(args: Args) -> anyhow::Result<Exit> {
    match args.what {
        What::Impact(args) => impact::run(args),
        What::Serve(args) => hidden::serve(args),
        What::Spin => hidden::spin(),
        What::Elsewhere(args) => hidden::elsewhere(args),
    }
}
