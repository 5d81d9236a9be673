//! The result as one page that needs no network and no script: verdicts first, then for
//! each workload the latency curves, bars and all figures.

mod chart;

use super::gates::ROUNDS_MIN;
use super::report::{CellReport, ImpactReport, Verdict};
use super::text::{interval, remarks, short};
use std::fmt::Write;

const STYLE: &str = include_str!("html/page.css");

/// The whole page.
pub fn page(report: &ImpactReport) -> String {
    let mut html = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        html,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>Towline: latency impact</title><style>{STYLE}\
         </style></head><body><main><h1>What the disk costs a guest here</h1>"
    );
    warnings(&mut html, report);
    servers(&mut html, report);
    verdicts(&mut html, report);
    for workload in &report.workloads {
        let cells: Vec<_> = report.cells.iter().filter(|c| c.workload == workload.name).collect();
        if !cells.is_empty() {
            let (name, says) = (escape(workload.name), escape(workload.says));
            let _ = write!(html, "<section><h2>{says}</h2><p class=\"name\">{name}</p>");
            chart::draw(&mut html, &cells);
            figures(&mut html, &cells);
            html.push_str("</section>");
        }
    }
    facts(&mut html, report);
    html.push_str("</main></body></html>\n");
    html
}

fn warnings(html: &mut String, report: &ImpactReport) {
    let mut warn = |text: &str| {
        let _ = write!(html, "<p class=\"warning\">{}</p>", escape(text));
    };
    if report.debug_build {
        warn("This is a debug build: the figures of towline are worth nothing.");
    }
    let rounds = || report.cells.iter().flat_map(|cell| &cell.rounds);
    let (all, disturbed) = (rounds().count(), rounds().filter(|round| !round.clean).count());
    if disturbed > 0 {
        warn(&format!(
            "Others used the machine during {disturbed} of {all} windows; they are marked."
        ));
    }
    if report.rounds < ROUNDS_MIN {
        warn("A quick look: too few rounds for verdicts.");
    }
    for skipped in &report.skipped {
        warn(&format!("Left out: {}: {}", skipped.what, skipped.reason));
    }
    report.notes.iter().for_each(|note| warn(note));
}

fn servers(html: &mut String, report: &ImpactReport) {
    html.push_str("<ul class=\"servers\">");
    for server in &report.servers {
        let colour = chart::colour(server.name);
        let (name, says) = (server.name.name(), escape(server.says));
        let _ = write!(
            html,
            "<li><span class=\"key\" style=\"background:{colour}\"></span><b>{name}</b> {says}</li>"
        );
    }
    html.push_str("</ul>");
}

fn verdicts(html: &mut String, report: &ImpactReport) {
    if report.gates.is_empty() && report.baseline.is_none() {
        return;
    }
    html.push_str(
        "<section><h2>Ratios against the bounds</h2><p>Ours over theirs: the median of the \
         rounds with its 95 % interval. The line marks 1, the triangle the bound.</p><table>\
         <tr><th>Measure<th>Ratio<th>Bound<th>Ours : theirs<th class=\"wide\"><th>Verdict</tr>",
    );
    for gate in &report.gates {
        let noisy = if gate.noisy { " (noisy)" } else { "" };
        let sign = if gate.at_least { "≥" } else { "≤" };
        let _ = write!(
            html,
            "<tr><td>{}<td class=\"n\">{}<td class=\"n\">{}<td class=\"n\">{} : {}<td>",
            escape(&gate.title()),
            interval(Some(gate.ratio)),
            gate.bound.map_or(String::new(), |bound| format!("{sign} {}", bound.reach)),
            short(gate.ours_median),
            short(gate.theirs_median),
        );
        chart::ratio(html, gate.ratio, gate.bound.map(|bound| bound.reach), gate.at_least);
        let _ =
            write!(html, "<td class=\"{}\">{}{noisy}", class(gate.verdict), gate.verdict.says());
    }
    if let Some(baseline) = &report.baseline {
        let _ = write!(
            html,
            "<tr><td>{}<td class=\"n\">{}<td class=\"n\">≤ {}<td><td>",
            escape(&baseline.title()),
            interval(baseline.p99_ratio),
            baseline.bound.reach
        );
        if let Some(ratio) = baseline.p99_ratio {
            chart::ratio(html, ratio, Some(baseline.bound.reach), false);
        }
        let verdict = baseline.verdict;
        let _ = write!(html, "<td class=\"{}\">{}", class(verdict), verdict.says());
    }
    html.push_str("</table></section>");
}

fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Stretch | Verdict::Met => "good",
        Verdict::Missed => "bad",
        Verdict::Unclear | Verdict::TooFewRounds | Verdict::Told | Verdict::TooSlow => "open",
    }
}

fn figures(html: &mut String, cells: &[&CellReport]) {
    html.push_str(
        "<table><tr><th>Server<th>Placement<th>Client<th>p50 µs<th>p99 µs<th>p99.9 µs<th>IOPS\
         <th>MB/s<th>CPU µs/op<th>CPU s/GiB<th>beside µs/op<th>Remarks</tr>",
    );
    for cell in cells {
        let m = &cell.median;
        let _ = write!(
            html,
            "<tr><td>{}<td>{}<td>{}",
            cell.server,
            cell.placement.name(),
            cell.client.name()
        );
        let values = [m.p50_us, m.p99_us, m.p999_us, m.iops, m.mb_per_s, m.cpu_us_per_op];
        for value in values.into_iter().chain([m.cpu_s_per_gib, m.side_cpu_us_per_op]) {
            let _ = write!(html, "<td class=\"n\">{}", short(value));
        }
        let _ = write!(html, "<td>{}", escape(&remarks(cell)));
    }
    html.push_str("</table>");
}

fn facts(html: &mut String, report: &ImpactReport) {
    let (machine, source) = (&report.machine, &report.source);
    let mib = |bytes: u64| bytes >> 20;
    let virtual_machine = if machine.virtual_machine { ", a virtual machine" } else { "" };
    let rows = [
        (
            "Machine",
            format!(
                "{} processors, {}{virtual_machine}, {} MiB",
                machine.processors,
                machine.model,
                mib(machine.memory_bytes)
            ),
        ),
        ("Kernel, file system", format!("{}, {}", machine.kernel, machine.file_system)),
        ("Programs", machine.programs.join("; ")),
        (
            "Disk",
            format!(
                "{}, {} MiB; most workloads use the first {} MiB",
                source.path,
                mib(source.size_bytes),
                mib(source.working_set_bytes)
            ),
        ),
        (
            "Run",
            format!(
                "towline {}, {} rounds of {} s after {} s of warm-up, seed {}, {:.0} s in all",
                report.towline_version,
                report.rounds,
                report.seconds,
                report.warm_seconds,
                report.seed,
                report.elapsed_s
            ),
        ),
    ];
    html.push_str("<section><h2>How it was measured</h2><table>");
    for (name, text) in rows {
        let _ = write!(html, "<tr><th>{name}<td>{}", escape(&text));
    }
    html.push_str("</table></section>");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn the_page_fetches_nothing_and_runs_nothing() {
        let html = page(&report());
        for word in ["http:", "https:", "src=", "<script", "url(", "@import", "<link"] {
            assert!(!html.contains(word), "{word}");
        }
    }

    #[test]
    fn the_page_shows_every_server_every_verdict_and_what_was_left_out() {
        let mut report = report();
        report.notes.push("a <note> & more".into());
        let html = page(&report);
        for cell in &report.cells {
            assert!(html.contains(cell.server.name()), "{}", cell.server);
        }
        assert!(!report.gates.is_empty());
        for gate in &report.gates {
            assert!(html.contains(&escape(&gate.measure)) && html.contains(gate.verdict.says()));
        }
        assert!(html.contains("Left out: nbd-server: nbd-server is not installed"));
        assert!(html.contains("a &lt;note&gt; &amp; more"));
        // A drawing must not hold what is no number.
        assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
        assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
    }
}
