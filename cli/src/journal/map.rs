//! `towline journal map`: what the target lacks, as a picture of each volume.

use super::{Place, percent, svg, volume_of};
use crate::exit::Exit;
use crate::{output, terminal};
use serde::Serialize;
use std::fmt::Write;
use std::io::IsTerminal;
use std::path::PathBuf;
use towline_block::BLOCK_BYTES;
use towline_block::size::format_size;
use towline_journal::inspect::{Cell, GroupView, VolumeChanges};

/// Letters of a line for files, pipes and JSON.
const COLUMNS: u64 = 64;
/// A terminal's lines have a multiple of this, as many as fit.
const COLUMNS_STEP: usize = 16;
const COLUMNS_MAX: usize = 128;
/// Before the letters of a line: the offset of the first.
const OFFSET_COLUMNS: usize = 12;
const ROWS_MAX: u64 = 200;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Only this volume.
    #[arg(long, value_name = "NAME")]
    volume: Option<String>,
    /// Lines of the picture for each volume.
    #[arg(long, value_name = "N", default_value_t = 16,
          value_parser = clap::value_parser!(u64).range(1..=ROWS_MAX))]
    rows: u64,
    /// Also write the picture to this file, as SVG.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// What a cell is drawn as: the first that applies to any of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shade {
    Suspect,
    Dirty,
    Claimed,
    Journaled,
    Hot,
    Clean,
}

impl Shade {
    pub const ALL: [Shade; 6] =
        [Shade::Clean, Shade::Hot, Shade::Journaled, Shade::Claimed, Shade::Dirty, Shade::Suspect];

    pub fn of(cell: &Cell) -> Shade {
        if cell.suspect > 0 {
            Shade::Suspect
        } else if cell.dirty > 0 {
            Shade::Dirty
        } else if cell.claimed > 0 {
            Shade::Claimed
        } else if cell.journaled > 0 {
            Shade::Journaled
        } else if cell.hot > 0 {
            Shade::Hot
        } else {
            Shade::Clean
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Shade::Suspect => "suspect",
            Shade::Dirty => "dirty",
            Shade::Claimed => "claimed",
            Shade::Journaled => "journaled",
            Shade::Hot => "hot",
            Shade::Clean => "clean",
        }
    }

    pub fn meaning(self) -> &'static str {
        match self {
            Shade::Suspect => "compared with the target before it is sent",
            Shade::Dirty => "the target lacks it, the journal does not hold it",
            Shade::Claimed => "on its way to the target",
            Shade::Journaled => "changed by records that the target lacks",
            Shade::Hot => "the target has it; compared with it after a power loss",
            Shade::Clean => "the target has it",
        }
    }

    /// The cell's letter: small while only some of its blocks are meant.
    fn letter(self, cell: &Cell) -> char {
        let letter = match self {
            Shade::Suspect => 'S',
            Shade::Dirty => 'D',
            Shade::Claimed => 'C',
            Shade::Journaled => 'J',
            Shade::Hot => return ':',
            Shade::Clean => return '.',
        };
        if cell.pending < cell.blocks { letter.to_ascii_lowercase() } else { letter }
    }

    /// Code of the terminal's colour.
    fn ansi(self) -> u8 {
        match self {
            Shade::Suspect => 35,
            Shade::Dirty => 31,
            Shade::Claimed => 33,
            Shade::Journaled => 36,
            Shade::Hot => 34,
            Shade::Clean => 90,
        }
    }
}

#[derive(Serialize)]
struct Report {
    group: String,
    block_bytes: u64,
    volumes: Vec<VolumeLine>,
    svg: Option<PathBuf>,
}

/// Sums in bytes of whole blocks; a block can count as several.
#[derive(Serialize)]
struct VolumeLine {
    name: String,
    size_bytes: u64,
    pending_bytes: u64,
    journaled_bytes: u64,
    dirty_bytes: u64,
    claimed_bytes: u64,
    suspect_bytes: u64,
    /// Of the activity map; `null` without one.
    hot_bytes: Option<u64>,
    /// Bytes of one letter of the picture.
    cell_bytes: u64,
    /// One letter a cell: `.` clean, `:` hot, J journaled, C claimed, D dirty, S suspect; small
    /// letters where only some of the cell's blocks are meant.
    picture: Vec<String>,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let view = args.place.open_ring()?;
    let volumes = match &args.volume {
        Some(name) => {
            let index = volume_of(&view, name)?.index();
            index..index + 1
        }
        None => 0..view.volume_names().len(),
    };
    let changes = |cells: u64| -> Vec<VolumeChanges> {
        volumes.clone().map(|volume| view.changes(volume, cells)).collect()
    };
    let shown = if args.place.json { None } else { terminal::columns() };
    let columns = shown.map_or(COLUMNS, letters);
    let maps = changes(columns * args.rows);
    if let Some(path) = &args.svg {
        svg::write(path, &svg::picture(view.state.group.as_str(), &changes(svg::CELLS_MAX)))?;
    }
    if args.place.json {
        let report = Report {
            group: view.state.group.to_string(),
            block_bytes: BLOCK_BYTES,
            volumes: maps.iter().map(line).collect(),
            svg: args.svg.clone(),
        };
        output::json(&report)?;
    } else {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        output::text_line(&describe(&view, &maps, columns, colour))?;
        if let Some(path) = &args.svg {
            output::text_line(&format!("the picture is in {}", path.display()))?;
        }
    }
    Ok(Exit::Ok)
}

/// Letters of a line on a terminal of so many columns.
fn letters(columns: usize) -> u64 {
    let fit = columns.saturating_sub(OFFSET_COLUMNS) / COLUMNS_STEP * COLUMNS_STEP;
    fit.clamp(COLUMNS_STEP, COLUMNS_MAX) as u64
}

fn line(map: &VolumeChanges) -> VolumeLine {
    let letter = |cell: &Cell| Shade::of(cell).letter(cell);
    VolumeLine {
        name: map.name.clone(),
        size_bytes: map.size_bytes,
        pending_bytes: map.total.pending * BLOCK_BYTES,
        journaled_bytes: map.total.journaled * BLOCK_BYTES,
        dirty_bytes: map.total.dirty * BLOCK_BYTES,
        claimed_bytes: map.total.claimed * BLOCK_BYTES,
        suspect_bytes: map.total.suspect * BLOCK_BYTES,
        hot_bytes: map.activity_known.then_some(map.total.hot * BLOCK_BYTES),
        cell_bytes: map.cell_blocks * BLOCK_BYTES,
        picture: map
            .cells
            .chunks(COLUMNS as usize)
            .map(|row| row.iter().map(letter).collect())
            .collect(),
    }
}

fn describe(view: &GroupView, maps: &[VolumeChanges], columns: u64, colour: bool) -> String {
    let wrapped = |line: &str, indent| terminal::wrapped(line, indent, terminal::columns());
    let mut text = format!("change map of group {}\n", view.state.group);
    for map in maps {
        let cell_bytes = map.cell_blocks * BLOCK_BYTES;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "\n{}: {}, one letter is {}",
            map.name,
            format_size(map.size_bytes),
            format_size(cell_bytes)
        );
        for (index, row) in map.cells.chunks(columns as usize).enumerate() {
            let offset = index as u64 * columns * cell_bytes;
            let _ = writeln!(text, "{:>10}  {}", format_size(offset), row_text(row, colour));
        }
        let blocks = map.total.blocks;
        let amount = |count: u64| {
            format!("{} ({})", format_size(count * BLOCK_BYTES), percent(count, blocks))
        };
        let sums = format!(
            "  the target lacks {}: journaled {}, dirty {}, claimed {}; suspect {}{}",
            amount(map.total.pending),
            amount(map.total.journaled),
            amount(map.total.dirty),
            amount(map.total.claimed),
            amount(map.total.suspect),
            if map.activity_known {
                format!("; hot {}", amount(map.total.hot))
            } else {
                String::new()
            }
        );
        let _ = writeln!(text, "{}", wrapped(&sums, 4));
    }
    text.push('\n');
    for shade in Shade::ALL {
        let whole = Cell { blocks: 1, pending: 1, ..Cell::default() };
        let letter = shade.letter(&whole).to_string();
        let line = format!("  {letter}  {:<9}  {}", shade.name(), shade.meaning());
        // The letter comes first: colours take no room.
        let line = wrapped(&line, 16).replacen(&letter, &painted(&letter, shade, colour), 1);
        let _ = writeln!(text, "{line}");
    }
    text.push_str("  small letters: only some of the blocks behind the letter");
    text
}

fn row_text(row: &[Cell], colour: bool) -> String {
    let shades = row.chunk_by(|a, b| Shade::of(a) == Shade::of(b));
    let run = |cells: &[Cell]| {
        let shade = cells.first().map_or(Shade::Clean, Shade::of);
        let letters: String = cells.iter().map(|cell| shade.letter(cell)).collect();
        painted(&letters, shade, colour)
    };
    shades.map(run).collect()
}

fn painted(text: &str, shade: Shade, colour: bool) -> String {
    if colour { format!("\x1b[{}m{text}\x1b[0m", shade.ansi()) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_picture_fits_its_terminal() {
        assert_eq!([40, 60, 76, 80, 120, 400].map(letters), [16, 48, 64, 64, 96, 128]);
    }

    #[test]
    fn a_cell_shows_the_worst_of_its_blocks_and_whether_it_is_all_of_them() {
        let cell = |journaled, dirty, claimed, suspect, pending| Cell {
            blocks: 4,
            journaled,
            dirty,
            claimed,
            suspect,
            pending,
            hot: 0,
        };
        let row = [
            cell(0, 0, 0, 0, 0),
            cell(1, 0, 0, 0, 1),
            cell(4, 0, 0, 0, 4),
            cell(4, 0, 1, 0, 4),
            cell(1, 1, 1, 0, 2),
            cell(0, 4, 0, 0, 4),
            cell(0, 4, 0, 1, 4),
        ];
        assert_eq!(row_text(&row, false), ".jJCdDS");
        assert_eq!(row_text(&row[4..6], true), "\x1b[31mdD\x1b[0m");
    }
}
