//! Draws what the section `growth` has measured: one SVG for each question, with both axes in powers of ten.
//!
//! ```text
//! cargo run --release --bin plots                   # docs/growth.csv, into docs/
//! cargo run --release --bin plots -- FILE DIR       # another file, into another directory
//! ```
//!
//! The pictures follow the reader's choice of light or dark. They depend on nothing but the file, so that a changed
//! picture means changed figures.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// One line of the file.
struct Point {
    what: String,
    contender: String,
    members: f64,
    threads: f64,
    median: f64,
    least: f64,
    most: f64,
}

/// What goes along an axis.
#[derive(Clone, Copy)]
enum Along {
    Members,
    Threads,
}

/// A picture.
struct Plot {
    file: &'static str,
    title: &'static str,
    unit: &'static str,
    what: &'static str,
    along: Along,
}

impl Plot {
    const ALL: [Plot; 6] = [
        Plot {
            file: "growth-get.svg",
            title: "A get, by the number of members (1 thread)",
            unit: "ns",
            what: "get",
            along: Along::Members,
        },
        Plot {
            file: "growth-put.svg",
            title: "A put over an old value, by the number of members (1 thread)",
            unit: "ns",
            what: "put",
            along: Along::Members,
        },
        Plot {
            file: "growth-memory.svg",
            title: "Memory for a member: a key of 25 bytes, a value of 100",
            unit: "bytes resident",
            what: "resident",
            along: Along::Members,
        },
        Plot { file: "growth-open.svg", title: "Opening a store", unit: "ms", what: "open", along: Along::Members },
        Plot {
            file: "growth-get-threads.svg",
            title: "Gets of all threads together, by their number",
            unit: "ns per get",
            what: "get",
            along: Along::Threads,
        },
        Plot {
            file: "growth-put-threads.svg",
            title: "Puts of all threads together, by their number",
            unit: "ns per put",
            what: "put",
            along: Along::Threads,
        },
    ];

    /// Where a point stands along the axis, if it belongs to this picture. `members` is what all have in a picture by
    /// threads.
    fn place(&self, point: &Point, members: f64) -> Option<f64> {
        match self.along {
            _ if point.what != self.what => None,
            Along::Members => (point.threads == 1.0).then_some(point.members),
            Along::Threads => (point.members == members).then_some(point.threads),
        }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plots: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let mut args = std::env::args().skip(1).map(PathBuf::from);
    let csv = args.next().unwrap_or_else(|| docs.join("growth.csv"));
    let dir = args.next().unwrap_or(docs);
    let text = fs::read_to_string(&csv).map_err(|error| format!("{}: {error}", csv.display()))?;
    let points = points(&text)?;
    // Threads are compared at a million members, or at as many as there are.
    let most = points.iter().map(|point| point.members).fold(0.0, f64::max);
    for plot in Plot::ALL {
        let members = most.min(1e6);
        let series = series(&plot, &points, members);
        if series.is_empty() {
            continue;
        }
        let path = dir.join(plot.file);
        fs::write(&path, Picture::draw(&plot, &series, members))?;
        println!("{}", path.display());
    }
    Ok(())
}

fn points(text: &str) -> Result<Vec<Point>> {
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    if lines.next() != Some("what,unit,contender,members,threads,median,least,most") {
        return Err("the columns are not those of growth".into());
    }
    let point = |line: &str| -> Result<Point> {
        let fields: Vec<&str> = line.split(',').collect();
        let [what, _, contender, numbers @ ..] = &fields[..] else { return Err("too few fields".into()) };
        let numbers: Vec<f64> = numbers.iter().map(|number| number.parse()).collect::<Result<_, _>>()?;
        let [members, threads, median, least, most] = numbers[..] else { return Err("not five numbers".into()) };
        let (what, contender) = (what.to_string(), contender.to_string());
        Ok(Point { what, contender, members, threads, median, least, most })
    };
    lines.map(|line| point(line).map_err(|error| format!("{line:?}: {error}").into())).collect()
}

/// A contender's line: its name, and its points with where they stand along the axis.
type Series<'a> = (&'a str, Vec<(f64, &'a Point)>);

fn series<'a>(plot: &Plot, points: &'a [Point], members: f64) -> Vec<Series<'a>> {
    let mut all: Vec<Series> = Vec::new();
    for point in points {
        let Some(x) = plot.place(point, members) else { continue };
        match all.iter_mut().find(|(name, _)| *name == point.contender) {
            Some((_, series)) => series.push((x, point)),
            None => all.push((&point.contender, vec![(x, point)])),
        }
    }
    all
}

// ---- drawing ----

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 56.0;

/// Okabe and Ito's colours, which those who see fewer colours tell apart, too; all of them stand out from white and from
/// black. Marks differ as well.
const COLOURS: [&str; 6] = ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#8f7a00", "#56a0d3"];

const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#222}.title{font-size:15px;font-weight:600}\
    .grid{stroke:#ddd}.axis{stroke:#222}.line{fill:none;stroke-width:2}.paper{fill:#fff}\
    @media(prefers-color-scheme:dark){text{fill:#ddd}.grid{stroke:#333}.axis{stroke:#ddd}.paper{fill:#111}}";

/// A range whose logarithm is taken, and where it is on the paper.
struct Axis {
    least: f64,
    most: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn at(&self, value: f64) -> f64 {
        let share = (value / self.least).ln() / (self.most / self.least).ln();
        self.from + share * (self.to - self.from)
    }

    /// The powers of ten in it; where there are few of them, twice and five times of each, or all of their multiples.
    fn ticks(&self) -> Vec<f64> {
        let steps: &[f64] = match (self.most / self.least).log10() {
            decades if decades < 1.0 => &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
            decades if decades < 2.5 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        let first = self.least.log10().floor() as i32;
        let all = (first..).flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)));
        let slack = 1e-9;
        all.skip_while(|tick| *tick < self.least * (1.0 - slack))
            .take_while(|tick| *tick <= self.most * (1.0 + slack))
            .collect()
    }
}

struct Picture(String);

impl Picture {
    fn draw(plot: &Plot, all: &[Series], members: f64) -> String {
        let xs = || all.iter().flat_map(|(_, series)| series.iter().map(|(x, _)| *x));
        let ys = || all.iter().flat_map(|(_, series)| series.iter().flat_map(|(_, point)| [point.least, point.most]));
        let ys = || ys().map(|y| y.max(0.1));
        let x = Axis {
            least: xs().fold(f64::INFINITY, f64::min),
            most: xs().fold(0.0, f64::max),
            from: LEFT,
            to: WIDTH - RIGHT,
        };
        let y = Axis {
            least: round_down(ys().fold(f64::INFINITY, f64::min)),
            most: round_up(ys().fold(0.0, f64::max)),
            from: HEIGHT - BOTTOM,
            to: TOP,
        };
        let mut picture = Picture(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
             height=\"{HEIGHT}\" role=\"img\" aria-label=\"{}\">\n<style>{STYLE}</style>\n",
            plot.title
        ));
        picture.line(format_args!("<rect class=\"paper\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>"));
        picture.line(format_args!("<text class=\"title\" x=\"{LEFT}\" y=\"24\">{}</text>", plot.title));
        picture.axes(plot, &x, &y, members);
        for (number, (name, series)) in all.iter().enumerate() {
            picture.series(number, name, series, (&x, &y));
        }
        picture.0.push_str("</svg>\n");
        picture.0
    }

    fn line(&mut self, line: std::fmt::Arguments) {
        // Writing to a string does not fail.
        _ = writeln!(self.0, "{line}");
    }

    fn axes(&mut self, plot: &Plot, x: &Axis, y: &Axis, members: f64) {
        for tick in y.ticks() {
            let at = y.at(tick);
            self.line(format_args!("<path class=\"grid\" d=\"M{} {at:.1}H{}\"/>", x.from, x.to));
            let (left, base) = (x.from - 8.0, at + 4.0);
            self.line(format_args!("<text x=\"{left}\" y=\"{base:.1}\" text-anchor=\"end\">{}</text>", short(tick)));
        }
        let (ticks, name) = match plot.along {
            Along::Members => (x.ticks(), "members".to_owned()),
            Along::Threads => (vec![1.0, 2.0, 4.0, 8.0], format!("threads, at {} members", short(members))),
        };
        for tick in ticks {
            let (at, base) = (x.at(tick), y.from + 20.0);
            self.line(format_args!("<path class=\"grid\" d=\"M{at:.1} {}V{}\"/>", y.from, y.to));
            self.line(format_args!("<text x=\"{at:.1}\" y=\"{base}\" text-anchor=\"middle\">{}</text>", short(tick)));
        }
        self.line(format_args!("<path class=\"axis\" fill=\"none\" d=\"M{} {}V{}H{}\"/>", x.from, y.to, y.from, x.to));
        let (middle, bottom) = ((x.from + x.to) / 2.0, HEIGHT - 14.0);
        self.line(format_args!("<text x=\"{middle}\" y=\"{bottom}\" text-anchor=\"middle\">{name}</text>"));
        let middle = (y.from + y.to) / 2.0;
        self.line(format_args!(
            "<text x=\"18\" y=\"{middle}\" text-anchor=\"middle\" transform=\"rotate(-90 18 {middle})\">{}</text>",
            plot.unit
        ));
    }

    /// The line through the medians, with a bar from the least to the most, and its entry in the legend.
    fn series(&mut self, number: usize, name: &str, series: &[(f64, &Point)], (x, y): (&Axis, &Axis)) {
        let colour = COLOURS[number % COLOURS.len()];
        let at = |value: f64| y.at(value.max(0.1));
        let mut path = String::new();
        for (place, point) in series {
            let step = if path.is_empty() { 'M' } else { 'L' };
            _ = write!(path, "{step}{:.1} {:.1}", x.at(*place), at(point.median));
        }
        self.line(format_args!("<g stroke=\"{colour}\" fill=\"{colour}\">"));
        self.line(format_args!("<path class=\"line\" d=\"{path}\"/>"));
        for (place, point) in series {
            let (left, least, most) = (x.at(*place), at(point.least), at(point.most));
            self.line(format_args!("<path d=\"M{left:.1} {least:.1}V{most:.1}\"/>"));
            self.mark(number, left, at(point.median));
        }
        let (left, top) = (x.to + 16.0, y.to + 8.0 + 22.0 * number as f64);
        self.line(format_args!("<path class=\"line\" d=\"M{left} {top}h24\"/>"));
        self.mark(number, left + 12.0, top);
        self.line(format_args!("</g>"));
        let (text, base) = (left + 32.0, top + 4.0);
        self.line(format_args!("<text x=\"{text}\" y=\"{base}\">{name}</text>"));
    }

    fn mark(&mut self, number: usize, x: f64, y: f64) {
        match number % 3 {
            0 => self.line(format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>")),
            1 => self.line(format_args!("<path d=\"M{x:.1} {y:.1}m-3.5 -3.5h7v7h-7z\"/>")),
            _ => self.line(format_args!("<path d=\"M{x:.1} {y:.1}m0 -4.5l4.5 8h-9z\"/>")),
        }
    }
}

/// To one, two or five times a power of ten.
fn round_down(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let step = [5.0, 2.0].into_iter().find(|step| step * power <= value).unwrap_or(1.0);
    step * power
}

fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let step = [1.0, 2.0, 5.0].into_iter().find(|step| step * power >= value).unwrap_or(10.0);
    step * power
}

/// `20`, `1,000` as `1k`, `10M`.
fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", value / 1e6),
        value if value >= 1e3 => format!("{}k", value / 1e3),
        value if value >= 1.0 => format!("{value}"),
        value => format!("{value:.1}"),
    }
}
