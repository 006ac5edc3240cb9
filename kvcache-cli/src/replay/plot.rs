//! The hit ratios of a replay as a picture.

use plotters::prelude::*;

use super::Outcome;

/// Block hit ratios over capacity, a line a policy, as SVG.
///
/// # Errors
///
/// What the drawing library says.
pub(super) fn draw(title: &str, outcomes: &[Outcome<'_>]) -> Result<String, String> {
    let mut picture = String::new();
    draw_into(&mut picture, title, outcomes).map_err(|error| error.to_string())?;
    Ok(picture)
}

fn draw_into(
    picture: &mut String,
    title: &str,
    outcomes: &[Outcome<'_>],
) -> Result<(), Box<dyn std::error::Error>> {
    let lines = lines(outcomes);
    let capacities = || outcomes.iter().map(|outcome| f64::from(outcome.capacity_blocks));
    let least = capacities().fold(f64::INFINITY, f64::min).min(f64::from(u32::MAX));
    let most = capacities().fold(1.0, f64::max);
    let highest = lines.iter().flat_map(|line| &line.points).map(|point| point.1).fold(0.01, f64::max);
    let area = SVGBackend::with_string(picture, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .margin_right(28)
        .x_label_area_size(40)
        .y_label_area_size(56)
        // A picture of one capacity has some room beside its points.
        .build_cartesian_2d((least * 0.9..most * 1.1).log_scale(), 0.0..highest * 1.05)?;
    chart
        .configure_mesh()
        .x_desc("capacity, blocks")
        .y_desc("block hit ratio")
        .x_label_formatter(&|blocks| format!("{blocks:.0}"))
        .light_line_style(WHITE)
        .draw()?;
    for (number, line) in lines.iter().enumerate() {
        let colour = if line.is_bound { BLACK.to_rgba() } else { Palette99::pick(number).to_rgba() };
        let style = ShapeStyle { color: colour, filled: false, stroke_width: 2 };
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style).point_size(3))?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    Ok(())
}

/// One line of the picture.
struct Line<'a> {
    name: &'a str,
    /// The optimum, which no policy can pass.
    is_bound: bool,
    /// Capacities in blocks and block hit ratios, by capacity.
    points: Vec<(f64, f64)>,
}

fn lines<'a>(outcomes: &[Outcome<'a>]) -> Vec<Line<'a>> {
    let mut lines: Vec<Line<'a>> = Vec::new();
    let mut add = |name: &'a str, is_bound: bool, point: (f64, f64)| {
        match lines.iter_mut().find(|line| line.name == name) {
            // Each row has the LRU and the optimum of its capacity.
            Some(line) if line.points.contains(&point) => {}
            Some(line) => line.points.push(point),
            None => lines.push(Line { name, is_bound, points: vec![point] }),
        }
    };
    for outcome in outcomes {
        let capacity = f64::from(outcome.capacity_blocks);
        add(super::BASELINE, false, (capacity, outcome.lru.block_hit_ratio));
        add(outcome.policy, false, (capacity, outcome.block_hit_ratio));
        if let Some(optimum) = &outcome.optimum {
            add("optimum", true, (capacity, optimum.block_hit_ratio));
        }
    }
    for line in &mut lines {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    lines
}

/// Width and height in pixels.
const SIZE: (u32, u32) = (720, 440);
