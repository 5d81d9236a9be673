//! What the bench found: rows of times, and figures with their targets; as a table and
//! as JSON.

use crate::activity::Point;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// What was measured of one step.
pub struct Row {
    pub name: &'static str,
    pub times: Histogram<u64>,
    /// Bytes an operation handles; 0: no throughput to speak of.
    pub bytes: usize,
}

/// One number that stands for itself.
pub struct Figure {
    pub name: &'static str,
    pub value: f64,
    pub unit: &'static str,
    /// What is asked for, as a sentence; empty: nothing is.
    pub target: &'static str,
}

#[derive(Default)]
pub struct Found {
    pub rows: Vec<Row>,
    pub figures: Vec<Figure>,
    /// Of the activity map.
    pub curve: Vec<Point>,
    /// Parts that could not be measured here, and why.
    pub skipped: Vec<String>,
}

pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 10_000_000_000, 3).expect("sound bounds")
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Found {
    pub fn figure(
        &mut self,
        name: &'static str,
        value: f64,
        unit: &'static str,
        target: &'static str,
    ) {
        self.figures.push(Figure { name, value, unit, target });
    }

    pub fn print(&self) {
        println!("{:<46} {:>9} {:>9} {:>9} {:>8}", "", "p50 ns", "p99 ns", "p99.9 ns", "GB/s");
        for row in &self.rows {
            let [p50, p99, p999] = quantiles(row);
            let rate = row.bytes as f64 / p50.max(1) as f64;
            let rate = if row.bytes == 0 { String::new() } else { format!("{rate:.2}") };
            println!("{:<46} {p50:>9} {p99:>9} {p999:>9} {rate:>8}", row.name);
        }
        println!();
        for of in &self.figures {
            let target =
                if of.target.is_empty() { String::new() } else { format!("({})", of.target) };
            println!("{:<62} {:>10.2} {:<6} {target}", of.name, of.value, of.unit);
        }
        self.print_curve();
        for what in &self.skipped {
            println!("not measured: {what}");
        }
    }

    fn print_curve(&self) {
        if self.curve.is_empty() {
            return;
        }
        println!(
            "\n{:<22} {:>7} {:>5} {:>7} {:>11} {:>11} {:>8} {:>12} {:>12}",
            "activity map",
            "extent",
            "ahead",
            "round s",
            "wait ns/wr",
            "waits/10^6",
            "syncs",
            "hot 95% MiB",
            "most MiB"
        );
        for point in &self.curve {
            println!(
                "{:<22} {:>3} MiB {:>5} {:>7} {:>11.1} {:>11.1} {:>8} {:>12} {:>12}",
                point.load,
                point.extent_bytes >> 20,
                point.ahead,
                point.round_s,
                point.wait_ns,
                point.waits_per_million,
                point.syncs,
                point.hot_p95 >> 20,
                point.hot_max >> 20
            );
        }
    }

    pub fn json(&self) -> Value {
        let row = |row: &Row| {
            let [p50, p99, p999] = quantiles(row);
            json!({
                "name": row.name, "p50_ns": p50, "p99_ns": p99, "p999_ns": p999,
                "count": row.times.len(), "bytes": row.bytes,
            })
        };
        let figure = |of: &Figure| json!({"name": of.name, "value": of.value, "unit": of.unit, "target": of.target});
        let point = |of: &Point| {
            json!({
                "load": of.load, "extent_bytes": of.extent_bytes, "ahead": of.ahead, "round_s": of.round_s,
                "wait_ns_a_write": of.wait_ns, "waits_per_million": of.waits_per_million,
                "syncs": of.syncs, "hot_p95_bytes": of.hot_p95, "hot_max_bytes": of.hot_max,
            })
        };
        json!({
            "schema": 1,
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "figures": self.figures.iter().map(figure).collect::<Vec<_>>(),
            "activity": self.curve.iter().map(point).collect::<Vec<_>>(),
            "skipped": self.skipped,
        })
    }
}

fn quantiles(row: &Row) -> [u64; 3] {
    [0.5, 0.99, 0.999].map(|q| row.times.value_at_quantile(q))
}
