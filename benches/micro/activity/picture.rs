//! The activity map's curve as an SVG: what a write waits, and what a power loss compares,
//! over the extent's size; both axes in powers.

use super::Point;
use std::fmt::Write;

const PANEL: (f64, f64) = (430.0, 300.0);
const MARGIN: (f64, f64) = (70.0, 40.0);
const COLOURS: [&str; 8] =
    ["#c8382d", "#e9a13b", "#2a9d8f", "#264e86", "#8e44ad", "#6b7280", "#111827", "#d16ba5"];

struct Panel<'a> {
    left: f64,
    title: &'a str,
    unit: &'a str,
    /// Least and greatest power of ten.
    powers: (i32, i32),
    value: fn(&Point) -> f64,
}

pub fn picture(points: &[&Point], sizes: &[u64]) -> String {
    let mut loads: Vec<&str> = Vec::new();
    for point in points {
        if !loads.contains(&point.load.as_str()) {
            loads.push(&point.load);
        }
    }
    let panels = [
        Panel {
            left: MARGIN.0,
            title: "Wait for the state disk",
            unit: "ns a write",
            powers: (1, 6),
            value: |point| point.wait_ns,
        },
        Panel {
            left: PANEL.0 + 2.0 * MARGIN.0,
            title: "To compare after a power loss, 95 %",
            unit: "MiB",
            powers: (2, 6),
            value: |point| point.hot_p95 as f64 / f64::from(1 << 20),
        },
    ];
    let mut body = String::new();
    for panel in &panels {
        axes(&mut body, panel, sizes);
        for (load, colour) in loads.iter().zip(COLOURS) {
            line(
                &mut body,
                panel,
                points.iter().copied().filter(|p| p.load == *load),
                sizes,
                colour,
            );
        }
    }
    let legend = MARGIN.1 + PANEL.1 + 50.0;
    for (index, (load, colour)) in loads.iter().zip(COLOURS).enumerate() {
        let (x, y) = (MARGIN.0 + (index % 4) as f64 * 245.0, legend + (index / 4) as f64 * 20.0);
        let _ =
            writeln!(body, "<rect x='{x}' y='{}' width='12' height='4' fill='{colour}'/>", y - 6.0);
        text(&mut body, x + 18.0, y, "start", load);
    }
    let (width, height) = (2.0 * (PANEL.0 + MARGIN.0) + 60.0, legend + 45.0);
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' \
         viewBox='0 0 {width} {height}' font-family='sans-serif' font-size='12'>\n\
         <rect width='{width}' height='{height}' fill='#fff'/>\n{body}</svg>\n"
    )
}

fn x_of(panel: &Panel<'_>, sizes: &[u64], size: u64) -> f64 {
    let at = sizes.iter().position(|s| *s == size).unwrap_or(0) as f64;
    panel.left + 20.0 + at * (PANEL.0 - 40.0) / (sizes.len().max(2) - 1) as f64
}

fn y_of(panel: &Panel<'_>, value: f64) -> f64 {
    let (least, most) = (f64::from(panel.powers.0), f64::from(panel.powers.1));
    let power = value.max(1e-9).log10().clamp(least, most);
    MARGIN.1 + PANEL.1 * (most - power) / (most - least)
}

fn axes(body: &mut String, panel: &Panel<'_>, sizes: &[u64]) {
    let (left, right) = (panel.left, panel.left + PANEL.0);
    text(body, left, MARGIN.1 - 15.0, "start", &format!("{} ({})", panel.title, panel.unit));
    for power in panel.powers.0..=panel.powers.1 {
        let y = y_of(panel, 10_f64.powi(power));
        let _ = writeln!(body, "<path d='M{left} {y}H{right}' stroke='#d7dbe0'/>");
        text(body, left - 6.0, y + 4.0, "end", &format!("{}", 10_f64.powi(power)));
    }
    for size in sizes {
        let (x, y) = (x_of(panel, sizes, *size), MARGIN.1 + PANEL.1 + 18.0);
        text(body, x, y, "middle", &format!("{} MiB", size >> 20));
    }
}

fn line<'a>(
    body: &mut String,
    panel: &Panel<'_>,
    points: impl Iterator<Item = &'a Point>,
    sizes: &[u64],
    colour: &str,
) {
    let place = |point: &Point| {
        let x = x_of(panel, sizes, point.extent_bytes);
        format!("{x:.1},{:.1}", y_of(panel, (panel.value)(point)))
    };
    let places: Vec<String> = points.map(place).collect();
    let _ = writeln!(
        body,
        "<polyline points='{}' fill='none' stroke='{colour}' stroke-width='2'/>",
        places.join(" ")
    );
}

fn text(body: &mut String, x: f64, y: f64, anchor: &str, content: &str) {
    let _ = writeln!(body, "<text x='{x:.1}' y='{y:.1}' text-anchor='{anchor}'>{content}</text>");
}
