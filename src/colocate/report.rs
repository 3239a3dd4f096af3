//! The figures as one HTML page that needs nothing but itself: no script, no font, no network. It can be mailed, and still reads in ten years.
//!
//! The page answers in the order in which a reader asks: what changed, for whom, how sure, by what means, and made where. Simulated figures
//! say so in the banner, in every chart's title and in every table's caption, so that no cut-out picture can be taken for a measurement.
//!
//! | file | what it does |
//! |---|---|
//! | `headline` | the sentence at the top, and which policies it compares |
//! | `charts`, `labels` | the drawings |
//! | `scale`, `svg` | axes, figures as text, escaped elements |

mod charts;
mod headline;
mod labels;
mod scale;
mod svg;

#[cfg(test)]
mod tests;

use smidgen_runtime::launch::Walls;
use smidgen_runtime::tenant::Class;

use super::names::cut;
use super::results::{PhaseClocks, PolicyResult, RunResult, TenantResult};
use charts::Charts;
use headline::{Comparison, tenants};
use scale::{index, milliseconds, number, percent, positive};
use svg::Escaped;

/// Characters of a tenant's name in the table of all figures.
const LONGEST_NAME: usize = 20;

/// The whole page.
pub fn render(run: &RunResult) -> String {
    let comparison = Comparison::of(run);
    let headline = comparison.as_ref().map_or_else(|| "A run without tenants.".to_owned(), Comparison::headline);
    let mark = mark(run);
    let charts = Charts::new(run);
    let sections = [
        header(run, &headline, comparison.as_ref()),
        latency(run, &charts),
        throughput(run, &charts),
        distributions(run, &charts),
        table(run, &charts),
        streams(run),
        clocks(run),
        predictions(run),
        READING.to_owned(),
        provenance(run),
    ];
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{mark}{}</title>\n<style>\n{}</style>\n</head>\n\
         <body>\n<main>\n{}</main>\n</body>\n</html>\n",
        Escaped(&headline),
        include_str!("report/page.css"),
        sections.concat()
    )
}

fn mark(run: &RunResult) -> &'static str {
    if run.provenance.simulated { "SIMULATED: " } else { "" }
}

fn header(run: &RunResult, headline: &str, comparison: Option<&Comparison>) -> String {
    let provenance = &run.provenance;
    let mut html = String::from("<header>\n");
    if provenance.simulated {
        html += "<p class=\"simulated\" role=\"note\"><b>SIMULATED.</b> No GPU was used: every figure and every chart on this page is a \
                 prediction of smidgen’s simulator, made from a profile. Nothing here was measured.</p>\n";
    }
    html += &format!(
        "<p class=\"kicker\"><b>smidgen</b> · {} on one {} · {}</p>\n<h1>{}{}</h1>\n",
        match tenants(run).len() {
            1 => "1 tenant".to_owned(),
            count => format!("{count} tenants"),
        },
        Escaped(&provenance.gpu),
        Escaped(&provenance.date),
        mark(run),
        unbroken(headline)
    );
    if let Some(verdict) = comparison.and_then(Comparison::verdict) {
        html += &format!("<p class=\"lead\">{}</p>\n", unbroken(&verdict));
    }
    html += &comparison.map(cards).unwrap_or_default();
    html + "</header>\n"
}

/// Escaped text in which no line ends between a figure and its unit, or within a short hyphenated word, as policies' names are.
fn unbroken(text: &str) -> String {
    let word = |word: &str| {
        let escaped = Escaped(word).to_string();
        if word.contains('-') && word.chars().count() <= 20 { format!("<span class=\"whole\">{escaped}</span>") } else { escaped }
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ").replace(" ms ", "&nbsp;ms ")
}

/// The compared figures side by side, large.
fn cards(compared: &Comparison) -> String {
    let Some(shown) = compared.placed.or(compared.ordinary) else { return String::new() };
    let before = compared.placed.and(compared.ordinary);
    let card = |title: &str, value: String, was: Option<String>| {
        let was = before.zip(was).map(|(before, was)| format!("{was} under {}", before.policy));
        format!(
            "<li><span>{}</span><strong>{}</strong><span>{}</span></li>\n",
            Escaped(title),
            Escaped(&value),
            Escaped(&was.unwrap_or_else(|| "no other way of sharing was run".to_owned()))
        )
    };
    let p99 = |policy: &PolicyResult| milliseconds(compared.p99_ms(policy).unwrap_or(f64::NAN));
    let total = |policy: &PolicyResult| index(policy.total_normalised_throughput);
    let fairness = |policy: &PolicyResult| index(policy.fairness);
    let each = if compared.tenant.stream.is_some() { " a token" } else { "" };
    let kept = compared.objective_ms(shown).map(|objective| {
        let title = format!("{} within its objective of {}{} under {}", compared.tenant.name, milliseconds(objective), each, shown.policy);
        let kept = |policy: &PolicyResult| compared.kept(policy).map_or_else(|| "–".to_owned(), percent);
        card(&title, kept(shown), before.map(kept))
    });
    format!(
        "<ul class=\"cards\">\n{}{}{}{}</ul>\n",
        card(&format!("{}’s p99 under {}", compared.tenant.name, shown.policy), p99(shown), before.map(p99)),
        kept.unwrap_or_default(),
        card(&format!("Normalised throughput under {}", shown.policy), total(shown), before.map(total)),
        card(&format!("Fairness under {}", shown.policy), fairness(shown), before.map(fairness)),
    )
}

fn figures<'a>(run: &'a RunResult, draw: impl Fn(&'a TenantResult) -> String) -> String {
    tenants(run).iter().map(|tenant| format!("<figure>{}</figure>\n", draw(tenant))).collect()
}

fn latency<'a>(run: &'a RunResult, charts: &Charts<'a>) -> String {
    format!(
        "<section>\n<h2>Latency, tenant by tenant</h2>\n<p class=\"note\">{}Ring: median. Tick: 95th percentile. Disc, with its figure: 99th. \
         The grey band is what the tenant has by itself on the GPU, at its own rate of requests if it has one, and the \
         bright line what it should keep; further right is slower.</p>\n<div class=\"charts\">\n{}</div>\n</section>\n",
        mark(run),
        figures(run, |tenant| charts.latency(tenant))
    )
}

fn throughput(run: &RunResult, charts: &Charts) -> String {
    if run.policies.is_empty() {
        return String::new();
    }
    let order = tenants(run).iter().map(|tenant| format!("<b>{}</b>", Escaped(&tenant.name))).collect::<Vec<_>>().join(", ");
    format!(
        "<section>\n<h2>What the whole GPU gets done</h2>\n<div class=\"charts\">\n<figure>{}</figure>\n<div class=\"aside\">\n\
         <p class=\"note\">{}Each segment is a tenant’s throughput divided by its own throughput alone, from left to right: {order}. At <em>1</em> \
         sharing gains nothing over taking turns. The <em>ideal</em>, {}, would be every tenant as fast as if it were alone.</p>\n\
         <p class=\"note\">A tenant whose requests arrive at a fixed rate cannot exceed that rate, so its segment may be short for lack of \
         demand.</p>\n</div>\n</div>\n</section>\n",
        charts.throughput(),
        mark(run),
        tenants(run).len()
    )
}

fn distributions<'a>(run: &'a RunResult, charts: &Charts<'a>) -> String {
    format!(
        "<section>\n<h2>Every request, not only percentiles</h2>\n<p class=\"note\">{}The height of a curve is the share of requests that \
         finished within that latency. Steep and far left is good; a long flat top is a bad tail. Alone is as in the charts \
         above, the grey band. Latency is on a logarithmic scale.</p>\n<div class=\"charts\">\n{}</div>\n</section>\n",
        mark(run),
        figures(run, |tenant| charts.distribution(tenant))
    )
}

fn table(run: &RunResult, charts: &Charts) -> String {
    let mut html = format!(
        "<section>\n<h2>All figures</h2>\n<p class=\"note\">Walls say what confined a tenant’s kernels: the grid’s size, a grant polled in \
         flight, a partition.</p>\n<div class=\"scroll\">\n<table>\n<caption>{}{}, {} s a phase. Latencies in milliseconds.</caption>\n\
         <thead><tr><th scope=\"col\">tenant</th><th scope=\"col\" class=\"word\">class</th>",
        mark(run),
        if run.provenance.simulated { "Predicted by the simulator" } else { "Measured" },
        number(run.provenance.seconds)
    );
    for column in ["requests/s", "p50", "p95", "p99", "slowdown", "within SLO", "SMs"] {
        html += &format!("<th scope=\"col\">{column}</th>");
    }
    html += "<th scope=\"col\" class=\"word\">walls</th></tr></thead>\n";
    html += &group("", "alone", "each tenant by itself", &run.alone);
    if !run.alone_at_rate.is_empty() {
        html += &group("", "alone at its rate", "by itself, requests arriving as they do beside others", &run.alone_at_rate);
    }
    for (at, policy) in run.policies.iter().enumerate() {
        let totals = format!(
            "normalised throughput {} · fairness {} · Jain’s index {}",
            index(policy.total_normalised_throughput),
            index(policy.fairness),
            index(policy.jain)
        );
        html += &group(&charts.class(at), &policy.policy, &totals, &policy.tenants);
    }
    html + "</table>\n</div>\n</section>\n"
}

fn group(class: &str, name: &str, totals: &str, tenants: &[TenantResult]) -> String {
    let head = format!("<th colspan=\"10\" scope=\"rowgroup\"><i></i>{}<small>{totals}</small></th>", Escaped(name));
    let rows: String = tenants.iter().map(row).collect();
    format!("<tbody>\n<tr class=\"group {class}\">{head}</tr>\n{rows}</tbody>\n")
}

fn row(tenant: &TenantResult) -> String {
    let latency = |value| positive(value).map_or_else(|| "–".into(), number);
    let none = || if tenant.slo_ms.is_some() { "–".into() } else { "no SLO".into() };
    let within = tenant.slo_attainment.map_or_else(none, percent);
    let within = if tenant.falls_behind() { format!("{within}, {} still waited", tenant.waiting) } else { within };
    let figures = [
        number(tenant.throughput),
        latency(tenant.p50_ms),
        latency(tenant.p95_ms),
        latency(tenant.p99_ms),
        positive(tenant.slowdown).map_or_else(|| "–".into(), |slowdown| format!("{}×", number(slowdown))),
        within,
        tenant.sms.to_string(),
    ];
    format!(
        "<tr><th scope=\"row\" title=\"{}: {}\">{}</th><td class=\"word\">{}</td>{}<td class=\"word\">{}</td></tr>\n",
        Escaped(&tenant.name),
        Escaped(&tenant.model),
        Escaped(&cut(&tenant.name, LONGEST_NAME)),
        class(tenant.class),
        figures.map(|figure| format!("<td>{figure}</td>")).concat(),
        walls(tenant.walls)
    )
}

/// When the tokens of streams came. Their objectives are for the time from one token to the next.
fn streams(run: &RunResult) -> String {
    let row = |phase: &str, tenant: &TenantResult| {
        let stream = tenant.stream?;
        let latency = |value| positive(value).map_or_else(|| "–".into(), number);
        let figures =
            [number(stream.tokens_per_second)].into_iter().chain(stream.first_token_ms.into_iter().chain(stream.per_token_ms).map(latency));
        let objective = tenant.slo_ms.map_or_else(|| "no SLO".into(), number);
        let cells: String = figures.chain([objective]).map(|figure| format!("<td>{figure}</td>")).collect();
        Some(format!(
            "<tr><th scope=\"row\">{}</th><td class=\"word\">{}</td>{cells}</tr>\n",
            Escaped(phase),
            Escaped(&cut(&tenant.name, LONGEST_NAME))
        ))
    };
    let rows: String = run.phases().filter_map(|(phase, tenant)| row(phase, tenant)).collect();
    if rows.is_empty() {
        return rows;
    }
    let mut html = format!(
        "<section>\n<h2>Streams, token by token</h2>\n<div class=\"scroll\">\n<table>\n<caption>{}From a request’s arrival to its first token, and from one token to \
         the next, in milliseconds. An objective is for the latter; the latencies above are those of whole requests.</caption>\n<thead><tr>\
         <th scope=\"col\">phase</th><th scope=\"col\" class=\"word\">tenant</th>",
        mark(run)
    );
    for column in ["tokens/s", "first token p50", "p95", "p99", "per token p50", "p95", "p99", "SLO"] {
        html += &format!("<th scope=\"col\">{column}</th>");
    }
    html + &format!("</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n</section>\n")
}

/// A tenant's class in a word.
fn class(class: Class) -> &'static str {
    match class {
        Class::Latency => "latency",
        Class::Throughput => "throughput",
    }
}

fn walls(walls: Walls) -> String {
    let named = [(walls.grid, "grid"), (walls.grant, "grant"), (walls.partition, "partition")];
    let standing: Vec<_> = named.into_iter().filter_map(|(stands, name)| stands.then_some(name)).collect();
    if standing.is_empty() { "none".into() } else { standing.join(", ") }
}

/// What the GPU did meanwhile: whoever compares phases must know which of them were held back.
fn clocks(run: &RunResult) -> String {
    if run.clocks.is_empty() {
        return String::new();
    }
    let row = |phase: &PhaseClocks| {
        let (name, limits) = (Escaped(&phase.phase), Escaped(&phase.limits()).to_string());
        format!(
            "<tr><th scope=\"row\">{name}</th><td>{}</td><td>{}</td><td class=\"word\">{limits}</td></tr>\n",
            phase.sm_clock_mhz,
            number(phase.power_w)
        )
    };
    let rows: String = run.clocks.iter().map(row).collect();
    format!(
        "<section>\n<h2>Clock and power</h2>\n<div class=\"scroll narrow\">\n<table>\n<caption>Median clock of the SMs and mean power of the board while \
         each phase was measured. Where a limit held the clock back, throughput is what that limit leaves.</caption>\n<thead><tr>\
         <th scope=\"col\">phase</th><th scope=\"col\">SM clock, MHz</th><th scope=\"col\">power, W</th>\
         <th scope=\"col\" class=\"word\">held back by</th></tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n</section>\n"
    )
}

/// Predictions stand in a table of their own: a simulated figure never stands among measured ones.
fn predictions(run: &RunResult) -> String {
    let mut rows = String::new();
    for policy in &run.policies {
        for prediction in policy.predicted.iter().flatten() {
            let error = 100.0 * prediction.error;
            let error = if error.is_finite() { format!("{error:+.1}%") } else { "–".into() };
            rows += &format!(
                "<tr><th scope=\"row\">{}</th><td class=\"word\">{}</td><td>{}</td><td>{error}</td></tr>\n",
                Escaped(&policy.policy),
                Escaped(&prediction.name),
                number(prediction.simulated_throughput)
            );
        }
    }
    if rows.is_empty() {
        return rows;
    }
    format!(
        "<section>\n<h2>How well the simulator predicts this run</h2>\n<div class=\"scroll narrow\">\n<table>\n<caption>SIMULATED: throughput that the \
         simulator predicts from the measured profile, and how far that is from what was measured.</caption>\n<thead><tr>\
         <th scope=\"col\">policy</th><th scope=\"col\" class=\"word\">tenant</th><th scope=\"col\">SIMULATED requests/s</th>\
         <th scope=\"col\">error</th></tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n</section>\n"
    )
}

const READING: &str = "<section>\n<h2>How to read this</h2>\n<dl class=\"words\">\n\
    <dt>alone</dt><dd>The tenant by itself on the whole GPU, as many requests as it can take. All else is compared with this.</dd>\n\
    <dt>p50, p95, p99</dt><dd>Half, 95% or 99% of the requests finished within this time. A latency tenant’s users feel p99.</dd>\n\
    <dt>slowdown</dt><dd>Mean latency divided by mean latency alone, at its own rate where requests arrive at one.</dd>\n\
    <dt>normalised throughput</dt><dd>Throughput divided by throughput alone; the total is the sum over tenants.</dd>\n\
    <dt>fairness</dt><dd>Smallest slowdown divided by largest: at 1 all tenants suffer alike.</dd>\n\
    <dt>Jain’s index</dt><dd>Fairness of the normalised throughputs: 1 when equal, 1/n when one of n tenants has everything.</dd>\n\
    <dt>within SLO</dt><dd>Share of a tenant’s requests that kept its latency objective; of a stream, by their mean time from one token to the next.</dd>\n\
    <dt>SMs</dt><dd>The most SMs that any kernel of the tenant was placed on.</dd>\n\
    <dt>time-slice, mps-default</dt><dd>Ordinary sharing, without smidgen: each tenant in a process of its own, by turns or under NVIDIA MPS.</dd>\n\
    <dt>mps-priority</dt><dd>MPS that is told to let latency tenants come first.</dd>\n\
    <dt>mps-percent</dt><dd>MPS that gives each tenant a fixed percentage of the SMs, equal parts unless the name says which.</dd>\n\
    <dt>:tiles</dt><dd>The same with kernels of one thread block for each tile, between which others can come in; without it, kernels are persistent. \
    The headline takes the form that does better.</dd>\n\
    </dl>\n</section>\n";

fn provenance(run: &RunResult) -> String {
    let provenance = &run.provenance;
    let commit = if provenance.commit.is_empty() { "unknown" } else { &provenance.commit };
    let rows = [
        ("command", format!("<code>{}</code>", Escaped(&provenance.command))),
        ("commit", format!("<code>{}</code>", Escaped(commit))),
        ("GPU", format!("{}, {} SMs", Escaped(&provenance.gpu), provenance.sms)),
        ("driver", Escaped(&provenance.driver).to_string()),
        ("date", Escaped(&provenance.date).to_string()),
        (
            "measured",
            format!(
                "{} s for each phase, {} phases",
                number(provenance.seconds),
                run.alone.len() + run.alone_at_rate.len() + run.policies.len()
            ),
        ),
        ("tenants", models(run)),
    ];
    let known = rows.into_iter().filter(|(_, text)| !text.is_empty());
    let rows: String = known.map(|(term, text)| format!("<dt>{term}</dt><dd>{text}</dd>\n")).collect();
    let rows = if provenance.simulated { rows.replace("<dt>measured</dt>", "<dt>SIMULATED</dt>") } else { rows };
    format!("<section>\n<h2>Where this comes from</h2>\n<dl>\n{rows}</dl>\n</section>\n")
}

fn models(run: &RunResult) -> String {
    let model = |tenant: &TenantResult| format!("{}: {} ({})", Escaped(&tenant.name), Escaped(&tenant.model), class(tenant.class));
    tenants(run).iter().map(model).collect::<Vec<_>>().join("<br>")
}
