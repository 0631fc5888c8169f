//! Plots as SVG. Plotters scales and draws; colours are left to the page's theme, so that one picture is for light and dark.

use anyhow::Result;
use maud::{Markup, PreEscaped, html};
use plotters::{
    coord::{
        Shift,
        combinators::IntoLogRange,
        ranged1d::{BoldPoints, Ranged},
        types::RangedCoordf64,
    },
    element::{DynElement, IntoDynElement},
    prelude::{
        Circle, DrawingArea, IntoDrawingArea, LogCoord, PathElement, Polygon, RGBColor, Rectangle,
        SVGBackend,
    },
    style::{
        Color, FontStyle, IntoTextStyle, ShapeStyle, TextStyle,
        text_anchor::{HPos, Pos, VPos},
    },
};

use crate::number::{about, short, tick};

/// What is drawn.
pub(crate) enum Plot {
    Rows(Rows),
    Lines(Lines),
}

/// Horizontal rows over one axis.
pub(crate) struct Rows {
    /// Of the axis: what is told, and its unit.
    pub(crate) axis: String,
    pub(crate) log: bool,
    pub(crate) rows: Vec<Row>,
    /// Names of the parts of stacked rows.
    pub(crate) parts: Vec<String>,
}

/// A labelled row.
pub(crate) struct Row {
    pub(crate) label: String,
    /// Which of the series' colours it has.
    pub(crate) series: usize,
    pub(crate) shape: Shape,
}

pub(crate) enum Shape {
    /// From nothing to the median, with the first and third quartile, and what it may and should be.
    Bar {
        median: f64,
        quartiles: (f64, f64),
        gate: Option<f64>,
        aim: Option<f64>,
    },
    /// From the median to the 99th percentile.
    Range { median: f64, p99: f64 },
    /// Parts that add up, each with which part it is.
    Stack(Vec<(usize, f64)>),
}

/// Lines through points.
pub(crate) struct Lines {
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) lines: Vec<Line>,
}

pub(crate) struct Axis {
    pub(crate) label: String,
    pub(crate) log: bool,
}

pub(crate) struct Line {
    pub(crate) label: String,
    /// Which colour and marker it has.
    pub(crate) series: usize,
    pub(crate) points: Vec<Point>,
}

pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
    /// What a thin line spans, from and to.
    pub(crate) spread: Option<(f64, f64)>,
}

/// How a picture is told to those who don't see it.
pub(crate) struct Told<'t> {
    /// Unlike any other picture's in the document.
    pub(crate) id: &'t str,
    pub(crate) title: &'t str,
    pub(crate) description: &'t str,
    /// A style sheet for a picture that stands alone.
    pub(crate) style: Option<&'t str>,
}

impl Plot {
    /// How many values it shows.
    pub(crate) fn values(&self) -> usize {
        match self {
            Self::Rows(rows) => rows
                .rows
                .iter()
                .map(|row| match &row.shape {
                    Shape::Bar { .. } => 1,
                    Shape::Range { .. } => 2,
                    Shape::Stack(parts) => parts.len(),
                })
                .sum(),
            Self::Lines(lines) => lines.lines.iter().map(|line| line.points.len()).sum(),
        }
    }

    /// A picture so many pixels wide.
    ///
    /// # Errors
    /// None of those that the library knows should come up.
    pub(crate) fn draw(&self, width: i32, told: &Told) -> Result<Markup> {
        let height = match self {
            Self::Rows(rows) => rows.layout(width).height,
            Self::Lines(lines) => lines.height(width),
        };
        let mut drawn = String::new();
        {
            let size = (width as u32, height as u32);
            let canvas = Canvas(SVGBackend::with_string(&mut drawn, size).into_drawing_area());
            match self {
                Self::Rows(rows) => rows.draw(&canvas, width)?,
                Self::Lines(lines) => lines.draw(&canvas, width)?,
            }
            canvas.0.present()?;
        }
        let (_, elements) = drawn.split_once(">\n").unwrap_or_default();
        let elements = elements.trim_end().trim_end_matches("</svg>");
        // Alone it has a margin of its own; in a page it is in line with the text.
        let margin = if told.style.is_some() { 16 } else { 0 };
        let (full_width, full_height) = (width + 2 * margin, height + 2 * margin);
        let title = format!("{}-title", told.id);
        let description = format!("{}-description", told.id);
        Ok(html! {
            svg xmlns="http://www.w3.org/2000/svg" id=(told.id) role="img"
                aria-labelledby={ (title) " " (description) }
                width=(full_width) height=(full_height) viewBox={ (-margin) " " (-margin) " " (full_width) " " (full_height) }
                font-family="system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
                data-values=(self.values()) {
                title id=(title) { (told.title) }
                desc id=(description) { (told.description) }
                @if let Some(style) = told.style {
                    style { (PreEscaped(style)) }
                }
                (PreEscaped(themed(elements)))
            }
        })
    }
}

/// A colour that the theme gives. What the library is given are numbers to be replaced.
#[derive(Clone, Copy)]
enum Ink {
    Text,
    Muted,
    Grid,
    Limit,
    /// What the page is of: around marks upon marks.
    Paper,
    /// Of marks, and of text beside them.
    Series(usize),
    Name(usize),
    /// Of text upon marks.
    OnMark,
}

/// How many series have colours and markers of their own.
pub(crate) const SERIES: usize = 8;

impl Ink {
    fn all() -> impl Iterator<Item = Self> {
        let fixed = [
            Self::Text,
            Self::Muted,
            Self::Grid,
            Self::Limit,
            Self::Paper,
            Self::OnMark,
        ];
        let series = (0..SERIES).flat_map(|i| [Self::Series(i), Self::Name(i)]);
        fixed.into_iter().chain(series)
    }

    fn colour(self) -> RGBColor {
        let (kind, number) = match self {
            Self::Text => (0, 0),
            Self::Muted => (0, 1),
            Self::Grid => (0, 2),
            Self::Limit => (0, 3),
            Self::OnMark => (0, 4),
            Self::Paper => (0, 5),
            Self::Series(i) => (1, i % SERIES),
            Self::Name(i) => (2, i % SERIES),
        };
        RGBColor(0xf0, kind, number as u8)
    }

    /// Of the page's style sheet.
    fn variable(self) -> String {
        match self {
            Self::Text => "--ink".to_owned(),
            Self::Muted => "--muted".to_owned(),
            Self::Grid => "--grid".to_owned(),
            Self::Limit => "--limit".to_owned(),
            Self::OnMark => "--on-mark".to_owned(),
            Self::Paper => "--paper".to_owned(),
            Self::Series(i) | Self::Name(i) => format!("--series-{i}"),
        }
    }

    fn line(self, width: u32) -> ShapeStyle {
        self.colour().stroke_width(width)
    }

    fn filled(self) -> ShapeStyle {
        self.colour().filled()
    }
}

/// With the theme's colours, and without what the whole picture says once.
fn themed(elements: &str) -> String {
    let mut elements = elements
        .replace(" font-family=\"sans-serif\"", "")
        .replace(" opacity=\"1\"", "");
    for ink in Ink::all() {
        let RGBColor(red, green, blue) = ink.colour();
        let given = format!("=\"#{red:02X}{green:02X}{blue:02X}\"");
        let wanted = format!("=\"var({})\"", ink.variable());
        if let Ink::Series(_) = ink {
            elements = elements.replace(
                &format!("fill{given}"),
                &format!("class=\"mark\" fill{wanted}"),
            );
        }
        elements = elements.replace(&given, &wanted);
    }
    elements
}

/// Of text, in pixels.
const SIZE: i32 = 12;
const SMALL: i32 = 11;

/// About how wide a text is.
fn width_of(text: &str, size: i32) -> i32 {
    text.chars().count() as i32 * size * 64 / 100
}

type Element<'a> = DynElement<'static, SVGBackend<'a>, (i32, i32)>;

/// Draws in pixels.
struct Canvas<'a>(DrawingArea<SVGBackend<'a>, Shift>);

impl<'a> Canvas<'a> {
    fn text(
        &self,
        text: &str,
        at: (i32, i32),
        ink: Ink,
        size: i32,
        anchor: HPos,
        bold: bool,
    ) -> Result<()> {
        let style = if bold {
            FontStyle::Bold
        } else {
            FontStyle::Normal
        };
        // What the backend divides by.
        let size = f64::from(size) * 1.24;
        let style: TextStyle = ("sans-serif", size, style).into_text_style(&self.0);
        let colour = ink.colour();
        let style = style.color(&colour).pos(Pos::new(anchor, VPos::Center));
        Ok(self.0.draw_text(text, &style, at)?)
    }

    /// Of axes and legends.
    fn small(&self, text: &str, at: (i32, i32), anchor: HPos) -> Result<()> {
        self.text(text, at, Ink::Muted, SMALL, anchor, false)
    }

    /// Below an axis, each where there is room left of the one before.
    fn ticks(&self, ticks: impl IntoIterator<Item = (i32, String)>, y: i32) -> Result<()> {
        let mut free = i32::MIN;
        for (x, text) in ticks {
            let half = width_of(&text, SMALL) / 2;
            if x - half > free {
                self.small(&text, (x, y), HPos::Center)?;
                free = x + half + 6;
            }
        }
        Ok(())
    }

    fn line(&self, from: (i32, i32), to: (i32, i32), style: ShapeStyle) -> Result<()> {
        Ok(self.0.draw(&PathElement::new([from, to], style))?)
    }

    fn bar(&self, from: (i32, i32), to: (i32, i32), style: ShapeStyle) -> Result<()> {
        Ok(self.0.draw(&Rectangle::new([from, to], style))?)
    }

    fn draw(&self, element: &Element<'a>) -> Result<()> {
        Ok(self.0.draw(element)?)
    }

    fn diamond(&self, (x, y): (i32, i32), radius: i32, style: ShapeStyle) -> Result<()> {
        self.draw(&marker(4, (x, y), radius, style))
    }
}

/// A shape for each series, so that none is told by its colour alone.
fn marker<'a>(series: usize, (x, y): (i32, i32), r: i32, style: ShapeStyle) -> Element<'a> {
    let polygon = |corners: &[(i32, i32)]| {
        let corners: Vec<_> = corners.iter().map(|(dx, dy)| (x + dx, y + dy)).collect();
        Polygon::new(corners, style).into_dyn()
    };
    let s = r - 1;
    match series % 6 {
        0 => Circle::new((x, y), r, style).into_dyn(),
        1 => Rectangle::new([(x - s, y - s), (x + s, y + s)], style).into_dyn(),
        2 => polygon(&[(0, -r - 1), (r + 1, r - 1), (-r - 1, r - 1)]),
        3 => polygon(&[(0, r + 1), (r + 1, 1 - r), (-r - 1, 1 - r)]),
        4 => polygon(&[(0, -r - 1), (r + 1, 0), (0, r + 1), (-r - 1, 0)]),
        _ => polygon(&[
            (-2, -r),
            (2, -r),
            (r, -2),
            (r, 2),
            (2, r),
            (-2, r),
            (-r, 2),
            (-r, -2),
        ]),
    }
}

/// Where values are on a line of pixels.
enum Scale {
    Linear(RangedCoordf64),
    Log(LogCoord<f64>),
}

impl Scale {
    /// Holds all values; from nothing where it is linear.
    fn over(values: impl Iterator<Item = f64>, log: bool) -> Self {
        let mut least = f64::INFINITY;
        let mut most = f64::NEG_INFINITY;
        for value in values.filter(|value| value.is_finite() && (!log || *value > 0.0)) {
            least = least.min(value);
            most = most.max(value);
        }
        if !most.is_finite() || (most <= 0.0 && !log) {
            (least, most) = if log {
                (1.0, 10.0)
            } else {
                (least.min(0.0), 1.0)
            };
        }
        if log {
            Self::Log((least / 1.25..most * 1.25).log_scale().into())
        } else {
            Self::Linear((least.min(0.0)..most * 1.04).into())
        }
    }

    /// What is below a logarithm's range is at its end.
    fn at(&self, value: f64, pixels: (i32, i32)) -> i32 {
        match self {
            Self::Linear(scale) => scale.map(&value, pixels),
            Self::Log(scale) => scale.map(&value.max(scale.range().start), pixels),
        }
    }

    fn ticks(&self, most: usize) -> Vec<f64> {
        match self {
            Self::Linear(scale) => scale.key_points(BoldPoints(most)),
            Self::Log(scale) => {
                let range = scale.range();
                let decades = range.start.log10().floor() as i32..=range.end.log10().ceil() as i32;
                let steps: [&[f64]; 3] = [&[1.0, 2.0, 5.0], &[1.0, 3.0], &[1.0]];
                let all = steps.map(|steps| {
                    let all = decades
                        .clone()
                        .flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
                    all.filter(|tick| range.contains(tick)).collect::<Vec<_>>()
                });
                let mut all = all.into_iter();
                let fitting = all.find(|ticks| ticks.len() <= most);
                fitting.unwrap_or_else(|| {
                    let decades = decades.map(|decade| 10f64.powi(decade));
                    decades
                        .filter(|tick| range.contains(tick))
                        .step_by(2)
                        .collect()
                })
            }
        }
    }
}

/// A word of a legend, with a symbol before it.
struct Key {
    text: String,
    symbol: Symbol,
}

#[derive(Clone, Copy)]
enum Symbol {
    Swatch(usize),
    Whisker,
    Gate,
    Aim,
    Median,
    P99,
}

const KEY: i32 = 18;
const SYMBOL: i32 = 22;

impl Key {
    fn new(text: &str, symbol: Symbol) -> Self {
        Self {
            text: text.to_owned(),
            symbol,
        }
    }

    fn width(&self) -> i32 {
        SYMBOL + width_of(&self.text, SMALL) + 14
    }

    fn draw(&self, canvas: &Canvas, (x, y): (i32, i32)) -> Result<()> {
        match self.symbol {
            Symbol::Swatch(series) => {
                canvas.bar((x, y - 5), (x + 14, y + 5), Ink::Name(series).filled())?
            }
            Symbol::Whisker => whisker(canvas, (x, x + 14), y)?,
            Symbol::Gate => gate(canvas, (x + 7, y), 6)?,
            Symbol::Aim => aim(canvas, (x + 7, y))?,
            Symbol::Median => canvas.draw(&marker(0, (x + 7, y), 4, Ink::Muted.filled()))?,
            Symbol::P99 => canvas.diamond((x + 7, y), 4, Ink::Muted.filled())?,
        }
        canvas.small(&self.text, (x + SYMBOL, y), HPos::Left)
    }
}

/// Where each key stands, row by row.
fn flow(keys: &[Key], width: i32) -> Vec<(i32, i32)> {
    let (mut x, mut row) = (0, 0);
    let place = |key: &Key| {
        if x > 0 && x + key.width() > width {
            (x, row) = (0, row + 1);
        }
        let here = (x, row);
        x += key.width();
        here
    };
    keys.iter().map(place).collect()
}

// What is drawn upon bars has the paper's colour around it, to be seen there.

fn whisker(canvas: &Canvas, (from, to): (i32, i32), y: i32) -> Result<()> {
    for style in [Ink::Paper.line(3), Ink::Text.line(1)] {
        canvas.line((from, y), (to, y), style)?;
        canvas.line((from, y - 3), (from, y + 3), style)?;
        canvas.line((to, y - 3), (to, y + 3), style)?;
    }
    Ok(())
}

fn gate(canvas: &Canvas, (x, y): (i32, i32), reach: i32) -> Result<()> {
    for (style, reach) in [(Ink::Paper.line(5), reach + 1), (Ink::Limit.line(2), reach)] {
        canvas.line((x, y - reach), (x, y + reach), style)?;
    }
    Ok(())
}

fn aim(canvas: &Canvas, at: (i32, i32)) -> Result<()> {
    canvas.diamond(at, 6, Ink::Paper.filled())?;
    canvas.diamond(at, 4, Ink::Limit.filled())
}

/// Where the parts of a picture with rows are.
struct Layout {
    keys: Vec<Key>,
    places: Vec<(i32, i32)>,
    /// Labels stand above their rows, because beside them they would take too much.
    above: bool,
    /// Of one row.
    row: i32,
    top: i32,
    /// The axis's pixels.
    pixels: (i32, i32),
    height: i32,
}

const BAR: i32 = 14;

impl Rows {
    fn layout(&self, width: i32) -> Layout {
        let keys = self.keys();
        let places = flow(&keys, width);
        let labels = self.rows.iter().map(|row| width_of(&row.label, SIZE));
        let label = labels.max().unwrap_or_default();
        let above = label > width * 36 / 100;
        let values = self
            .rows
            .iter()
            .map(|row| width_of(&row.shape.value(), SIZE));
        let value = values.max().unwrap_or_default();
        let row = if above { 40 } else { 26 };
        let legend = places.last().map_or(0, |(_, row)| (row + 1) * KEY);
        let top = legend + 8;
        Layout {
            keys,
            places,
            above,
            row,
            top,
            pixels: (if above { 4 } else { label + 12 }, width - value - 12),
            height: top + row * self.rows.len() as i32 + 40,
        }
    }

    fn keys(&self) -> Vec<Key> {
        let mut keys: Vec<_> = self
            .parts
            .iter()
            .enumerate()
            .map(|(i, part)| Key::new(part, Symbol::Swatch(i)))
            .collect();
        let any = |is: fn(&Shape) -> bool| self.rows.iter().any(|row| is(&row.shape));
        if any(|shape| matches!(shape, Shape::Bar { quartiles: (low, high), .. } if low < high)) {
            keys.push(Key::new("middle half of samples", Symbol::Whisker));
        }
        if any(|shape| matches!(shape, Shape::Bar { gate: Some(_), .. })) {
            keys.push(Key::new("gate", Symbol::Gate));
        }
        if any(|shape| matches!(shape, Shape::Bar { aim: Some(_), .. })) {
            keys.push(Key::new("aim", Symbol::Aim));
        }
        if any(|shape| matches!(shape, Shape::Range { .. })) {
            keys.push(Key::new("median", Symbol::Median));
            keys.push(Key::new("99 of 100", Symbol::P99));
        }
        keys
    }

    fn draw(&self, canvas: &Canvas, width: i32) -> Result<()> {
        let Layout {
            keys,
            places,
            above,
            row: row_height,
            top,
            pixels,
            height,
        } = self.layout(width);
        for (key, (x, row)) in keys.iter().zip(places) {
            key.draw(canvas, (x, KEY / 2 + row * KEY))?;
        }
        let scale = Scale::over(
            self.rows.iter().flat_map(|row| row.shape.extent()),
            self.log,
        );
        let bottom = height - 36;
        let ticks = scale.ticks(if width < 400 { 4 } else { 6 });
        let at = |value: f64| scale.at(value, pixels);
        for &value in &ticks {
            // Where bars begin.
            let ink = if value == 0.0 { Ink::Muted } else { Ink::Grid };
            canvas.line((at(value), top), (at(value), bottom), ink.line(1))?;
        }
        canvas.ticks(
            ticks.into_iter().map(|value| (at(value), tick(value))),
            bottom + 10,
        )?;
        canvas.small(&self.axis, (pixels.0, bottom + 27), HPos::Left)?;
        // One who is among others stands out.
        let ours = self.rows.iter().filter(|row| row.series == 0).count();
        let several = 2 * ours < self.rows.len();
        for (i, row) in self.rows.iter().enumerate() {
            let begin = top + i as i32 * row_height;
            let y = begin + row_height - 13;
            let is_first = row.series == 0 && several;
            if above {
                canvas.text(
                    &row.label,
                    (pixels.0, begin + 13),
                    Ink::Text,
                    SIZE,
                    HPos::Left,
                    is_first,
                )?;
            } else {
                canvas.text(
                    &row.label,
                    (pixels.0 - 10, y),
                    Ink::Text,
                    SIZE,
                    HPos::Right,
                    is_first,
                )?;
            }
            row.draw(canvas, &scale, pixels, y)?;
            canvas.text(
                &row.shape.value(),
                (width - 1, y),
                Ink::Text,
                SIZE,
                HPos::Right,
                is_first,
            )?;
        }
        Ok(())
    }
}

impl Row {
    fn draw(&self, canvas: &Canvas, scale: &Scale, pixels: (i32, i32), y: i32) -> Result<()> {
        let at = |value: f64| scale.at(value, pixels);
        let (above, below) = (y - BAR / 2, y + BAR / 2);
        let ink = Ink::Series(self.series);
        match &self.shape {
            Shape::Bar {
                median,
                quartiles: (low, high),
                gate: limit,
                aim,
            } => {
                // What is subtracted may come to less than nothing.
                let (begin, end) = (at(median.min(0.0)), at(median.max(0.0)));
                // A mark even where there is next to nothing.
                let end = end.max(begin + 1);
                canvas.bar((begin, above), (end, below), ink.filled())?;
                if low < high {
                    whisker(canvas, (at(*low), at(*high)), y)?;
                }
                if let Some(limit) = limit {
                    gate(canvas, (at(*limit), y), BAR / 2 + 3)?;
                }
                if let Some(aim) = aim {
                    self::aim(canvas, (at(*aim), y))?;
                }
            }
            Shape::Range { median, p99 } => {
                let (from, to) = (at(*median), at(*p99));
                canvas.bar((from, y - 1), (to, y + 1), Ink::Name(self.series).filled())?;
                canvas.draw(&marker(0, (from, y), 5, ink.filled()))?;
                canvas.diamond((to, y), 5, ink.filled())?;
            }
            Shape::Stack(parts) => {
                let mut sum = 0.0;
                for (part, value) in parts {
                    let begin = at(sum);
                    sum += value.max(0.0);
                    let end = at(sum).max(begin + 1);
                    // Parts are told apart by a gap, too.
                    canvas.bar(
                        (begin, above - 3),
                        (end - i32::from(end > begin + 2), below + 3),
                        Ink::Series(*part).filled(),
                    )?;
                    let text = short(*value);
                    if width_of(&text, SMALL) + 4 < end - begin {
                        let middle = i32::midpoint(begin, end);
                        canvas.text(&text, (middle, y), Ink::OnMark, SMALL, HPos::Center, false)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Shape {
    /// What stands at the end of the row.
    fn value(&self) -> String {
        match self {
            Self::Bar { median, .. } => short(*median),
            Self::Range { median, p99 } => format!("{} / {}", short(*median), short(*p99)),
            Self::Stack(parts) => short(parts.iter().map(|(_, value)| value).sum()),
        }
    }

    /// All that has to be on the axis.
    fn extent(&self) -> Vec<f64> {
        match self {
            Self::Bar {
                median,
                quartiles: (low, high),
                gate,
                aim,
            } => [Some(*median), Some(*low), Some(*high), *gate, *aim]
                .into_iter()
                .flatten()
                .collect(),
            Self::Range { median, p99 } => vec![*median, *p99],
            Self::Stack(parts) => vec![parts.iter().map(|(_, value)| value.max(0.0)).sum()],
        }
    }
}

impl Lines {
    fn height(&self, width: i32) -> i32 {
        (width * 52 / 100).clamp(240, 380)
    }

    fn draw(&self, canvas: &Canvas, width: i32) -> Result<()> {
        let height = self.height(width);
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let x_scale = Scale::over(points().map(|point| point.x), self.x.log);
        let y_values = points().flat_map(|point| {
            let (low, high) = point.spread.unwrap_or((point.y, point.y));
            [point.y, low, high]
        });
        let y_scale = Scale::over(y_values, self.y.log);

        let ticks = y_scale.ticks(7);
        let labels = ticks.iter().map(|&value| width_of(&tick(value), SMALL));
        let left = labels.max().unwrap_or_default() + 10;
        let names = self.lines.iter().map(|line| width_of(&line.label, SIZE));
        let right = width - names.max().unwrap_or_default() - 14;
        let (top, bottom) = (26, height - 38);
        let (xs, ys) = ((left, right), (bottom, top));

        canvas.small(&self.y.label, (0, 9), HPos::Left)?;
        for value in ticks {
            let y = y_scale.at(value, ys);
            canvas.line((left, y), (right, y), Ink::Grid.line(1))?;
            canvas.small(&tick(value), (left - 8, y), HPos::Right)?;
        }
        let at = |value: f64| x_scale.at(value, xs);
        let (ticks, shown) = self.x_ticks(&x_scale);
        for x in ticks.iter().copied().map(at) {
            canvas.line((x, bottom), (x, bottom + 4), Ink::Muted.line(1))?;
        }
        canvas.ticks(
            ticks.into_iter().map(|value| (at(value), shown(value))),
            bottom + 13,
        )?;
        canvas.small(&self.x.label, (left, bottom + 30), HPos::Left)?;

        for line in &self.lines {
            let at = |point: &Point| (x_scale.at(point.x, xs), y_scale.at(point.y, ys));
            let ink = Ink::Series(line.series);
            for point in &line.points {
                if let Some((low, high)) = point.spread {
                    let x = x_scale.at(point.x, xs);
                    let span = ((x, y_scale.at(low, ys)), (x, y_scale.at(high, ys)));
                    canvas.line(span.0, span.1, Ink::Name(line.series).line(1))?;
                }
            }
            let path = line.points.iter().map(at).collect::<Vec<_>>();
            canvas.draw(&PathElement::new(path, ink.line(2)).into_dyn())?;
            for point in &line.points {
                canvas.draw(&marker(line.series, at(point), 4, ink.filled()))?;
            }
        }
        for (line, y) in self.lines.iter().zip(self.name_places(&y_scale, ys)) {
            let ink = Ink::Name(line.series);
            canvas.text(
                &line.label,
                (right + 12, y),
                ink,
                SIZE,
                HPos::Left,
                line.series == 0,
            )?;
        }
        Ok(())
    }

    /// Where few values were chosen, each of them; and how they are written.
    fn x_ticks(&self, scale: &Scale) -> (Vec<f64>, fn(f64) -> String) {
        let points = self.lines.iter().flat_map(|line| &line.points);
        let mut chosen: Vec<_> = points.map(|point| point.x).collect();
        chosen.sort_by(f64::total_cmp);
        chosen.dedup();
        if chosen.len() <= 8 {
            (chosen, about)
        } else {
            (scale.ticks(6), tick)
        }
    }

    /// Beside each line's end, but not one upon the other.
    fn name_places(&self, scale: &Scale, ys: (i32, i32)) -> Vec<i32> {
        const APART: i32 = 15;
        let mut places: Vec<_> = self
            .lines
            .iter()
            .enumerate()
            .map(|(i, line)| {
                (
                    line.points
                        .last()
                        .map_or(ys.0, |point| scale.at(point.y, ys)),
                    i,
                )
            })
            .collect();
        places.sort_unstable();
        let mut least = ys.1;
        for (y, _) in &mut places {
            *y = (*y).max(least);
            least = *y + APART;
        }
        // Pushed beyond the end, they go back up.
        let mut most = ys.0;
        for (y, _) in places.iter_mut().rev() {
            *y = (*y).min(most);
            most = *y - APART;
        }
        let mut by_series = vec![0; places.len()];
        for (y, i) in places {
            by_series[i] = y;
        }
        by_series
    }
}
