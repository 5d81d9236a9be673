//! Drawings of a workload: latency curves, bars, an interval beside its bound.

use crate::impact::placement::Placement;
use crate::impact::plan::{ClientKind, ServerKind};
use crate::impact::report::CellReport;
use crate::impact::stats::Interval;
use crate::impact::text::short;
use std::fmt::Write;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 22.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 34.0;

/// Shares that have a line of their own; the scale grows with the nines.
const SHARES: [(f64, &str); 6] = [
    (0.0, ""),
    (0.5, "50 %"),
    (0.9, "90 %"),
    (0.99, "99 %"),
    (0.999, "99.9 %"),
    (0.9999, "99.99 %"),
];

/// Ours are of one family, the others are told apart.
pub(super) fn colour(server: ServerKind) -> &'static str {
    match server {
        ServerKind::Towline => "#0b5fd6",
        ServerKind::TowlineIdle => "#4f93ef",
        ServerKind::TowlineOff => "#8fb9f2",
        ServerKind::TowlineFlush => "#3a3f9e",
        ServerKind::TowlineWrite => "#7a6ff0",
        ServerKind::TowlineLowest => "#073f8f",
        ServerKind::TowlineUpstream => "#2f9e8f",
        ServerKind::NbdkitHop => "#b0603a",
        ServerKind::Nbdkit => "#d9480f",
        ServerKind::QemuNbd => "#c2255c",
        ServerKind::NbdServer => "#2b8a3e",
        ServerKind::QsdBackground => "#a07800",
        ServerKind::QsdBlocking => "#5c4a32",
    }
}

/// Curves of the placement that is measured most, and bars of all cells.
pub(super) fn draw(html: &mut String, cells: &[&CellReport]) {
    html.push_str("<div class=\"charts\">");
    for placement in Placement::ALL {
        let shown: Vec<_> = cells
            .iter()
            .copied()
            .filter(|cell| cell.placement == placement && cell.client == ClientKind::Batching)
            .filter(|cell| !cell.cdf.is_empty())
            .collect();
        if !shown.is_empty() {
            curves(html, placement, &shown);
        }
    }
    html.push_str("<div class=\"bars\">");
    bars(html, cells, "p50 µs", |cell| cell.median.p50_us);
    bars(html, cells, "p99 µs", |cell| cell.median.p99_us);
    bars(html, cells, "IOPS", |cell| cell.median.iops);
    html.push_str("</div></div>");
}

/// A scale on which each power of ten has the same length.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    /// Whole steps of 1, 2, 5 around all values.
    fn around(values: impl Iterator<Item = f64>) -> Scale {
        let (low, high) = values
            .map(|value| value.max(0.1))
            .fold((f64::MAX, 0.1_f64), |(low, high), value| (low.min(value), high.max(value)));
        let below = ticks(low / 10.0, high * 10.0).filter(|&tick| tick <= low).last();
        let above = ticks(low / 10.0, high * 10.0).find(|&tick| tick > high);
        Scale { low: below.unwrap_or(low), high: above.unwrap_or(high * 2.0) }
    }

    /// On a long scale only powers of ten have room for a label.
    fn labels(&self, tick: f64) -> bool {
        let power = tick.log10();
        self.high / self.low <= 1000.0 || (power - power.round()).abs() < 1e-6
    }

    fn x(&self, value: f64) -> f64 {
        let share = (value.max(self.low) / self.low).ln() / (self.high / self.low).ln();
        LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }
}

/// 1, 2, 5, 10, ... between two values.
fn ticks(low: f64, high: f64) -> impl Iterator<Item = f64> {
    let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
    powers
        .flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)))
        .filter(move |tick| (low..=high).contains(tick))
}

fn y(share: f64) -> f64 {
    let nines = -(1.0 - share.min(0.99995)).log10();
    let of_all = nines / -(0.00005_f64).log10();
    HEIGHT - BOTTOM - of_all * (HEIGHT - BOTTOM - TOP)
}

fn curves(html: &mut String, placement: Placement, cells: &[&CellReport]) {
    let scale = Scale::around(cells.iter().flat_map(|cell| cell.cdf.iter().map(|point| point.0)));
    let name = placement.name();
    let _ = write!(
        html,
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\" \
         aria-label=\"latency curves, {name}\">"
    );
    for (share, label) in SHARES {
        let y = y(share);
        let right = WIDTH - RIGHT;
        let _ = write!(
            html,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#e6eaf0\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            LEFT - 5.0,
            y + 4.0
        );
    }
    for tick in ticks(scale.low, scale.high * 1.001) {
        let (x, low) = (scale.x(tick), HEIGHT - BOTTOM);
        let label = if scale.labels(tick) { tick_text(tick) } else { String::new() };
        let _ = write!(
            html,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{low}\" stroke=\"#eef1f5\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            low + 14.0,
            label
        );
    }
    for cell in cells {
        let mut path = String::new();
        for (index, (us, share)) in cell.cdf.iter().enumerate() {
            let step = if index == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{step}{:.1} {:.1}", scale.x(*us), y(*share));
        }
        let _ = write!(
            html,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.8\"><title>{}</title>\
             </path>",
            colour(cell.server),
            cell.server
        );
    }
    let _ = write!(
        html,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">µs, {name}: share of requests that \
         took at most so long</text></svg>",
        (WIDTH + LEFT) / 2.0,
        HEIGHT - 4.0
    );
}

fn tick_text(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{} s", us / 1e6),
        us if us >= 1e3 => format!("{} ms", us / 1e3),
        us => format!("{us}"),
    }
}

const BAR: f64 = 15.0;
const BARS_WIDTH: f64 = 350.0;
const BARS_LEFT: f64 = 170.0;
const BARS_RIGHT: f64 = 46.0;

fn bars(html: &mut String, cells: &[&CellReport], title: &str, of: impl Fn(&CellReport) -> f64) {
    let longest = cells.iter().map(|cell| of(cell)).fold(0.0, f64::max).max(1e-9);
    let height = BAR * cells.len() as f64 + 20.0;
    let _ = write!(
        html,
        "<svg viewBox=\"0 0 {BARS_WIDTH} {height}\" width=\"{BARS_WIDTH}\" height=\"{height}\" \
         role=\"img\" aria-label=\"{title}\"><text x=\"{BARS_LEFT}\" y=\"12\">{title}</text>"
    );
    for (row, cell) in cells.iter().enumerate() {
        let y = 18.0 + BAR * row as f64;
        let value = of(cell);
        let length = value / longest * (BARS_WIDTH - BARS_LEFT - BARS_RIGHT);
        let _ = write!(
            html,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text><rect x=\"{BARS_LEFT}\" \
             y=\"{y:.1}\" width=\"{length:.1}\" height=\"{:.1}\" fill=\"{}\"/><text x=\"{:.1}\" \
             y=\"{:.1}\">{}</text>",
            BARS_LEFT - 5.0,
            y + BAR - 4.0,
            label(cell),
            BAR - 3.0,
            colour(cell.server),
            BARS_LEFT + length + 4.0,
            y + BAR - 4.0,
            short(value)
        );
    }
    html.push_str("</svg>");
}

/// The server, and what differs from the usual.
fn label(cell: &CellReport) -> String {
    let mut text = cell.server.to_string();
    if cell.placement != Placement::Unpinned {
        let _ = write!(text, ", {}", cell.placement.name());
    }
    if cell.client == ClientKind::Fio {
        text.push_str(", fio");
    }
    text
}

const RATIO_WIDTH: f64 = 150.0;
/// Ratios from a tenth to ten are shown.
const RATIO_TENS: f64 = 1.0;

/// An interval on a scale on which 2 and 1/2 are as far from 1.
pub(super) fn ratio(html: &mut String, ratio: Interval, bound: Option<f64>, at_least: bool) {
    let x = |value: f64| {
        let tens = value.max(1e-9).log10().clamp(-RATIO_TENS, RATIO_TENS);
        (tens / RATIO_TENS + 1.0) / 2.0 * (RATIO_WIDTH - 12.0) + 6.0
    };
    let colour = bound.map_or("#4a5565", |bound| {
        let kept = |value: f64| if at_least { value >= bound } else { value <= bound };
        match (kept(ratio.low), kept(ratio.high)) {
            (true, true) => "#0a7a3d",
            (false, false) => "#b3261e",
            _ => "#d99a00",
        }
    });
    let triangle = bound.map_or(String::new(), |bound| {
        format!("<path d=\"M{:.1} 6l-4 -6h8z\" fill=\"#4a5565\"/>", x(bound))
    });
    let one = x(1.0);
    let _ = write!(
        html,
        "<svg viewBox=\"0 0 {RATIO_WIDTH} 18\" width=\"{RATIO_WIDTH}\" height=\"18\" role=\"img\" \
         aria-label=\"interval and bound\"><line x1=\"{one:.1}\" y1=\"0\" x2=\"{one:.1}\" y2=\"18\" \
         stroke=\"#c3cad4\"/>{triangle}<line x1=\"{:.1}\" \
         y1=\"11\" x2=\"{:.1}\" y2=\"11\" stroke=\"{colour}\" stroke-width=\"3\"/><circle \
         cx=\"{:.1}\" cy=\"11\" r=\"4\" fill=\"{colour}\"/></svg>",
        x(ratio.low),
        x(ratio.high),
        x(ratio.value)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_holds_all_of_its_values_and_rises() {
        let scale = Scale::around([33.0, 4100.0].into_iter());
        assert_eq!((scale.low, scale.high), (20.0, 5000.0));
        let places = [33.0, 100.0, 4100.0].map(|us| scale.x(us));
        assert!(places.is_sorted() && places[0] > LEFT && places[2] < WIDTH - RIGHT, "{places:?}");
        // One value, or none that a logarithm has, is still a scale.
        for value in [0.0, 7.0] {
            let scale = Scale::around([value].into_iter());
            assert!(scale.low < scale.high && scale.x(value).is_finite());
        }
    }

    #[test]
    fn each_nine_takes_the_same_height() {
        let steps = [y(0.9) - y(0.99), y(0.99) - y(0.999), y(0.999) - y(0.9999)];
        assert!(steps.iter().all(|step| (step - steps[0]).abs() < 0.01), "{steps:?}");
        assert!(y(1.0) >= TOP - 0.01 && y(0.0) <= HEIGHT - BOTTOM);
    }
}
