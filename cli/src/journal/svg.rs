//! The change map as an SVG file: one square a stretch of the volume, with scale,
//! sizes and a legend; what a square is says its tooltip.

use super::map::Shade;
use anyhow::{Context, bail};
use std::fmt::Write;
use std::io::Read;
use std::path::Path;
use towline_block::BLOCK_BYTES;
use towline_block::size::format_size;
use towline_journal::inspect::{Cell, VolumeChanges};

/// Squares of a volume: 96 rows at most, a picture of about a screen.
pub const CELLS_MAX: u64 = COLUMNS * 96;
const COLUMNS: u64 = 128;
/// Pixels: a square with its gap, the column of offsets, a line of text.
const SQUARE: u64 = 8;
const MARGIN: u64 = 90;
const LINE: u64 = 18;
/// Rows between two offsets at the side.
const ROWS_PER_OFFSET: usize = 4;

fn fill(shade: Shade) -> &'static str {
    match shade {
        Shade::Clean => "#e4e7eb",
        Shade::Hot => "#b7cbe6",
        Shade::Journaled => "#2a9d8f",
        Shade::Claimed => "#e9a13b",
        Shade::Dirty => "#c8382d",
        Shade::Suspect => "#8e44ad",
    }
}

/// The whole document.
pub fn picture(group: &str, maps: &[VolumeChanges]) -> String {
    let mut body = String::new();
    let mut y = 2 * LINE;
    text(&mut body, 10, y - LINE / 2, 15, &format!("Change map of group {group}"));
    for map in maps {
        y = volume(&mut body, map, y + LINE);
    }
    y = legend(&mut body, y + LINE);
    let (width, height) = (MARGIN + COLUMNS * SQUARE + 20, y + LINE);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" fill=\"#222\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n{body}</svg>\n"
    )
}

/// Draws a volume from `y` on; gives where it ends.
fn volume(body: &mut String, map: &VolumeChanges, mut y: u64) -> u64 {
    let cell_bytes = map.cell_blocks * BLOCK_BYTES;
    let of_bytes = |count: u64| format_size(count * BLOCK_BYTES);
    let title = format!(
        "{}: {}; one square is {}; the target lacks {} (journaled {}, dirty {}, claimed {}); \
         suspect {}",
        map.name,
        format_size(map.size_bytes),
        format_size(cell_bytes),
        of_bytes(map.total.pending),
        of_bytes(map.total.journaled),
        of_bytes(map.total.dirty),
        of_bytes(map.total.claimed),
        of_bytes(map.total.suspect)
    );
    text(body, 10, y, 12, &title);
    y += LINE / 2;
    for (index, row) in map.cells.chunks(COLUMNS as usize).enumerate() {
        let first = index as u64 * COLUMNS;
        if index % ROWS_PER_OFFSET == 0 {
            text(body, 10, y + SQUARE, 10, &format_size(first * cell_bytes));
        }
        squares(body, row, first, cell_bytes, y);
        y += SQUARE;
    }
    y + LINE / 2
}

/// One rectangle a run of like squares.
fn squares(body: &mut String, row: &[Cell], first: u64, cell_bytes: u64, y: u64) {
    let like = |cell: &Cell| (Shade::of(cell), cell.pending == cell.blocks);
    let mut column = 0;
    for run in row.chunk_by(|a, b| like(a) == like(b)) {
        let Some((shade, all)) = run.first().map(like) else { continue };
        let count = run.len() as u64;
        let opacity = if all || matches!(shade, Shade::Clean | Shade::Hot) { "1" } else { "0.55" };
        let from = (first + column) * cell_bytes;
        // Writing to a String cannot fail.
        let _ = writeln!(
            body,
            "<rect x=\"{}\" y=\"{y}\" width=\"{}\" height=\"{}\" fill=\"{}\" \
             fill-opacity=\"{opacity}\"><title>{} at {from} to {}</title></rect>",
            MARGIN + column * SQUARE,
            count * SQUARE - 1,
            SQUARE - 1,
            fill(shade),
            shade.name(),
            from + count * cell_bytes,
        );
        column += count;
    }
}

fn legend(body: &mut String, mut y: u64) -> u64 {
    for shade in Shade::ALL {
        let _ = writeln!(
            body,
            "<rect x=\"10\" y=\"{}\" width=\"12\" height=\"12\" fill=\"{}\"/>",
            y - 10,
            fill(shade)
        );
        text(body, 30, y, 12, &format!("{}: {}", shade.name(), shade.meaning()));
        y += LINE;
    }
    text(body, 30, y, 12, "pale squares: only some of the blocks behind the square");
    y
}

fn text(body: &mut String, x: u64, y: u64, size: u64, content: &str) {
    let _ = writeln!(
        body,
        "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\">{}</text>",
        escaped(content)
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Writes the file. Of files that are there already only SVG is replaced: a slip of
/// the keyboard must not cost a disk image.
pub fn write(path: &Path, document: &str) -> anyhow::Result<()> {
    if path.exists() {
        let mut start = [0; 4];
        // Opening a pipe would wait for its writer.
        let read = path.is_file()
            && std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok();
        if !read || &start != b"<svg" {
            bail!(
                "{} exists and is no SVG: it is left as it is, name another file",
                path.display()
            );
        }
    }
    std::fs::write(path, document).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_the_document() {
        let map = VolumeChanges { name: "a<b&\"c\"".into(), ..VolumeChanges::default() };
        let document = picture("g", &[map]);
        assert!(document.contains("a&lt;b&amp;&quot;c&quot;"), "{document}");
    }

    #[test]
    fn only_svg_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        std::fs::write(&path, "data").unwrap();
        assert!(write(&path, "<svg/>").is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
        let path = dir.path().join("map.svg");
        write(&path, "<svg>1</svg>").unwrap();
        write(&path, "<svg>2</svg>").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"<svg>2</svg>");
    }
}
