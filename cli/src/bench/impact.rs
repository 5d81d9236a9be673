//! `towline bench impact`: what the proxy costs a guest here, and what others cost.

use crate::config::size_arg;
use crate::exit::{Exit, usage};
use crate::output;
use crate::signals::{Again, Stop};
use crate::table::duration;
use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use towline_bench::impact::{self, Cell, Choice, Level, PEERS, Refused, Scratch, Settings, Watch};
use towline_block::size::format_size;

/// Time between lines of progress where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// The ring where the shipper is stopped: a window's writes have to fit.
const IDLE_RING_BYTES: u64 = 2 << 30;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to measure: a new file (made, and removed at the end), or with --overwrite a file or block device.
    #[arg(long, value_name = "FILE|DEVICE", required_unless_present = "list")]
    source: Option<PathBuf>,
    /// The file or device exists and everything on it may be destroyed.
    #[arg(long)]
    overwrite: bool,
    /// Servers to compare with: nbdkit, nbdkit-hop, qemu-nbd, nbd-server, qsd-mirror [default: those of the level].
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    against: Option<Vec<String>>,
    /// Less than 2 minutes: an impression, no verdict.
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Everything; takes hours.
    #[arg(long)]
    full: bool,
    /// Only cells whose name matches; see --list.
    #[arg(long, value_name = "REGEX")]
    only: Option<String>,
    /// Show the cells of the level and how long they take, and do nothing.
    #[arg(long)]
    list: bool,
    /// Windows of each cell [default: 3, 5 or 7 by level].
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Length of a window [default: 0.6, 0.75 or 2 by level].
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Order, offsets and intervals follow from it.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Size of the disk that is made, or the part of one that is used [default: 256M, 512M or 4G by level].
    #[arg(long, value_name = "SIZE", value_parser = size_arg)]
    size: Option<u64>,
    /// The part of the disk that most workloads use.
    #[arg(long, value_name = "SIZE", value_parser = size_arg, default_value = "256M")]
    working_set: u64,
    /// Write one JSON object there; `-`: to standard output, instead of the table.
    #[arg(long, value_name = "FILE|-", num_args = 0..=1, default_missing_value = "-")]
    json: Option<String>,
    /// Write a page with curves there; it needs no network.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub fn run(args: Args) -> anyhow::Result<Exit> {
    let settings = settings(&args)?;
    let cells = impact::plan(&settings.choice);
    if cells.is_empty() {
        return Err(usage("no cell is chosen: see --list for their names"));
    }
    let seconds = impact::estimate_s(&settings, &cells);
    if args.list {
        return list(&cells, seconds);
    }
    let path = args.source.as_deref().context("clap asks for it")?;
    let refused = |error: anyhow::Error| match error.is::<Refused>() {
        true => usage(format!("{error:#}")),
        false => error,
    };
    Scratch::check(path, args.overwrite).map_err(refused)?;
    // A file that cannot be written is better known before than after.
    let outputs = Outputs::open(&args)?;
    crate::prerequisite::check()?;
    announce(&args, &settings, &cells, seconds);
    impact::install_spinners_command(
        [settings.towline.clone().into_os_string(), "bench".into(), "spin".into()].into(),
    );
    let mut show = Show::start()?;
    show.step("filling the disk", 0.0, seconds);
    let scratch = Scratch::make(path, settings.size_bytes, args.overwrite).map_err(refused)?;
    let report = impact::run(&scratch, &settings, &cells, &mut show);
    drop(scratch);
    let stopped = show.stopped();
    drop(show);
    let report = match report {
        Err(_) if stopped => {
            eprintln!("stopped: servers are ended, and what was made is removed");
            return Ok(Exit::Failed);
        }
        other => other?,
    };
    outputs.write(&report)?;
    Ok(Exit::Ok)
}

fn settings(args: &Args) -> anyhow::Result<Settings> {
    let level = match (args.quick, args.full) {
        (true, _) => Level::Quick,
        (_, true) => Level::Full,
        _ => Level::Default,
    };
    for name in args.against.iter().flatten() {
        if !PEERS.contains(&name.as_str()) {
            return Err(usage(format!("--against {name} is not known: take {}", PEERS.join(", "))));
        }
    }
    let only = match &args.only {
        None => None,
        Some(text) => Some(
            impact::Regex::new(text)
                .map_err(|e| usage(format!("--only {text} is no regular expression: {e}")))?,
        ),
    };
    let seconds = args.seconds.unwrap_or_else(|| level.seconds());
    if !(0.02..=3600.0).contains(&seconds) {
        return Err(usage("--seconds is out of range: take 0.02 to 3600"));
    }
    let rounds = args.rounds.unwrap_or_else(|| level.rounds());
    if rounds == 0 {
        return Err(usage("--rounds 0 measures nothing"));
    }
    Ok(Settings {
        choice: Choice { level, against: args.against.clone(), only },
        rounds,
        seconds,
        seed: args.seed,
        size_bytes: args.size.unwrap_or_else(|| level.size_bytes()),
        working_set_bytes: args.working_set,
        idle_ring_bytes: IDLE_RING_BYTES,
        towline: std::env::current_exe().context("cannot find this program's own file")?,
    })
}

fn list(cells: &[Cell], seconds: f64) -> anyhow::Result<Exit> {
    let names: Vec<String> = cells.iter().map(Cell::name).collect();
    eprintln!("{} cells, about {}", cells.len(), duration(seconds));
    output::text_line(&names.join("\n"))?;
    Ok(Exit::Ok)
}

/// Says what will happen before it does.
fn announce(args: &Args, settings: &Settings, cells: &[Cell], seconds: f64) {
    let path = args.source.as_deref().unwrap_or(std::path::Path::new(""));
    let what = match path.exists() {
        true => "OVERWRITES",
        false => "makes, writes and in the end removes",
    };
    eprintln!(
        "This {what} {} ({} of it), starts and ends servers on it, and keeps this machine busy for \
         about {}: {} cells, {} rounds of {} s. Beside the disk it needs {} in a folder of its own, \
         and rings of up to {} in /dev/shm; both are removed. For figures to be believed, let \
         nothing else run meanwhile.",
        path.display(),
        format_size(settings.size_bytes),
        duration(seconds),
        cells.len(),
        settings.rounds,
        settings.seconds,
        format_size(3 * settings.size_bytes),
        format_size(IDLE_RING_BYTES),
    );
}

/// Where the result goes.
struct Outputs {
    json: Option<Option<std::fs::File>>,
    html: Option<std::fs::File>,
}

impl Outputs {
    fn open(args: &Args) -> anyhow::Result<Outputs> {
        let create = |path: &std::path::Path| {
            std::fs::File::create(path)
                .map_err(|e| usage(format!("cannot write {}: {e}", path.display())))
        };
        let json = match args.json.as_deref() {
            None => None,
            Some("-") => Some(None),
            Some(path) => Some(Some(create(path.as_ref())?)),
        };
        Ok(Outputs { json, html: args.html.as_deref().map(create).transpose()? })
    }

    fn write(self, report: &impact::ImpactReport) -> anyhow::Result<()> {
        use std::io::Write;
        if let Some(mut file) = self.html {
            file.write_all(impact::page(report).as_bytes()).context("cannot write the page")?;
        }
        match self.json {
            Some(None) => return output::json(report),
            Some(Some(mut file)) => {
                writeln!(file, "{}", output::json_text(report)?)
                    .context("cannot write the JSON")?;
            }
            None => {}
        }
        output::text_line(&impact::table(report))
    }
}

/// Progress on stderr, and the request to stop.
struct Show {
    stop: Arc<AtomicBool>,
    bar: Option<ProgressBar>,
    said_at: Option<Instant>,
    began: Instant,
}

impl Show {
    fn start() -> anyhow::Result<Show> {
        let asked = Stop::listen(Again::ChangesNothing)?;
        let stop = Arc::new(AtomicBool::new(false));
        let tell = Arc::clone(&stop);
        std::thread::Builder::new()
            .name("stop".into())
            .spawn(move || {
                asked.wait();
                tell.store(true, Ordering::Relaxed);
            })
            .context("cannot start a thread")?;
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("[{bar:32}] {percent:>3} %  {msg}");
            if let Ok(style) = style {
                bar.set_style(style.progress_chars("#>-"));
            }
            bar
        });
        Ok(Show { stop, bar, said_at: None, began: Instant::now() })
    }
}

impl Watch for Show {
    fn step(&mut self, what: &str, done_s: f64, total_s: f64) {
        let share = if total_s > 0.0 { (done_s / total_s).clamp(0.0, 1.0) } else { 0.0 };
        // What is behind says better than an estimate how long the rest will take.
        let left = match share {
            share if share > 0.1 => self.began.elapsed().as_secs_f64() * (1.0 - share) / share,
            _ => total_s - done_s,
        };
        let text = format!("{} left  {what}", duration(left.max(0.0)));
        if let Some(bar) = &self.bar {
            bar.set_position((share * 1000.0) as u64);
            bar.set_message(text);
            return;
        }
        if self.said_at.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
            self.said_at = Some(Instant::now());
            eprintln!("{:3.0} %  {text}", share * 100.0);
        }
    }

    fn note(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
