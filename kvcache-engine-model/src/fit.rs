//! Finds the costs of computing from measured steps.

use serde::{Deserialize, Serialize};

use crate::cost::{Batch, ComputeCost};
use crate::error::Error;

/// A step that was measured.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredStep {
    /// Chunks of prompts: how many of the prompt's tokens were there before, and how many were computed.
    #[serde(default)]
    pub prefill: Vec<(u64, u64)>,
    /// Sequences that got a token of their answer: how many tokens each had before.
    #[serde(default)]
    pub decode: Vec<u64>,
    /// How long it took, in milliseconds.
    pub ms: f64,
}

/// Costs, and how well they explain what was measured.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Fitted {
    /// The costs.
    pub compute: ComputeCost,
    /// Steps of prompts that they were fitted to.
    pub prefill_steps: usize,
    /// Mean error of those, of the measured time.
    pub prefill_error: f64,
    /// Steps of answers that they were fitted to.
    pub decode_steps: usize,
    /// Mean error of those, of the measured time.
    pub decode_error: f64,
}

/// The costs, none of them negative, that explain the steps with the least squares of relative errors.
///
/// Steps of prompts and steps of answers are fitted apart, three unknowns each: the step itself, a token, and a
/// token's context. Steps with both are left out. What both kinds take at least becomes [`ComputeCost::step_us`].
/// Each of them needs steps that differ in what is unknown: chunks of several lengths and contexts, batches of
/// several lengths.
///
/// # Errors
///
/// If there are fewer steps of a kind than unknowns, or one of them is impossible.
pub fn fit(steps: &[MeasuredStep]) -> Result<Fitted, Error> {
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for (index, step) in steps.iter().enumerate() {
        let wrong = |reason: String| Err(Error::MeasuredStep { index, reason });
        if !(step.ms > 0.0 && step.ms <= 1e9) {
            return wrong(format!("it took {} ms, give more than 0 and at most 1e9", step.ms));
        }
        let mut batch = Batch::default();
        if step
            .decode
            .iter()
            .chain(step.prefill.iter().flat_map(|(computed, tokens)| [computed, tokens]))
            .any(|of| *of > 1 << 26)
        {
            return wrong(format!("more than {} tokens", 1 << 26));
        }
        step.prefill.iter().for_each(|(computed, tokens)| batch.add_prefill(*computed, *tokens));
        step.decode.iter().for_each(|computed| batch.add_decode(*computed));
        let ns = step.ms * 1e6;
        match (batch.prefill_tokens, batch.decode_sequences) {
            (0, 0) => return wrong("nothing was computed; give `prefill` or `decode`".to_owned()),
            (_, 0) => prefill.push(([1.0, batch.prefill_tokens as f64, batch.prefill_context as f64], ns)),
            (0, _) => decode.push(([1.0, batch.decode_sequences as f64, batch.decode_context as f64], ns)),
            _ => {}
        }
    }
    for (what, rows) in [("of prompts", &prefill), ("of answers", &decode)] {
        if rows.len() < 3 {
            return Err(Error::TooFewSteps { what, found: rows.len(), costs: 3 });
        }
    }
    let (of_prefill, of_decode) = (non_negative(&prefill), non_negative(&decode));
    let step_ns = of_prefill[0].min(of_decode[0]);
    let compute = ComputeCost {
        step_us: step_ns / 1e3,
        prefill_us: (of_prefill[0] - step_ns) / 1e3,
        prefill_token_us: of_prefill[1] / 1e3,
        prefill_context_ns: of_prefill[2],
        decode_us: (of_decode[0] - step_ns) / 1e3,
        decode_sequence_us: of_decode[1] / 1e3,
        decode_context_ns: of_decode[2],
    };
    Ok(Fitted {
        compute,
        prefill_steps: prefill.len(),
        prefill_error: mean_error(&prefill, &of_prefill),
        decode_steps: decode.len(),
        decode_error: mean_error(&decode, &of_decode),
    })
}

/// What a step has of each unknown, and how long it took.
type Row = ([f64; 3], f64);

fn mean_error(rows: &[Row], costs: &[f64; 3]) -> f64 {
    let errors = rows.iter().map(|(of, ns)| (dot(of, costs) / ns - 1.0).abs());
    errors.sum::<f64>() / rows.len() as f64
}

fn dot(a: &[f64; 3], b: &[f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

/// Non-negative least squares of relative errors. The best solution is the ordinary one of some subset of the
/// unknowns, with the others 0; with three unknowns all eight subsets are tried, which needs no library.
fn non_negative(rows: &[Row]) -> [f64; 3] {
    // Columns of like size, so that the normal equations keep their digits.
    let mut scale = [0.0f64; 3];
    for (of, ns) in rows {
        (0..3).for_each(|column| scale[column] = scale[column].max(of[column] / ns));
    }
    let scale = scale.map(|scale| if scale > 0.0 { scale } else { 1.0 });
    let rows: Vec<[f64; 3]> =
        rows.iter().map(|(of, ns)| std::array::from_fn(|column| of[column] / ns / scale[column])).collect();
    let residual = |costs: &[f64; 3]| rows.iter().map(|row| (dot(row, costs) - 1.0).powi(2)).sum::<f64>();
    let mut best = ([0.0; 3], residual(&[0.0; 3]));
    for subset in 1u8..8 {
        let columns: Vec<usize> = (0..3).filter(|column| subset & (1 << column) != 0).collect();
        let Some(costs) = least_squares(&rows, &columns) else { continue };
        let left = residual(&costs);
        if costs.iter().all(|cost| *cost >= 0.0) && left < best.1 {
            best = (costs, left);
        }
    }
    std::array::from_fn(|column| best.0[column] / scale[column])
}

/// Solves the normal equations of `rows · costs = 1` over some of the columns by elimination with pivots; `None` if the
/// columns do not differ.
fn least_squares(rows: &[[f64; 3]], columns: &[usize]) -> Option<[f64; 3]> {
    let count = columns.len();
    let mut matrix = vec![vec![0.0; count + 1]; count];
    for row in rows {
        for (line, column) in columns.iter().enumerate() {
            for (place, other) in columns.iter().enumerate() {
                matrix[line][place] += row[*column] * row[*other];
            }
            matrix[line][count] += row[*column];
        }
    }
    for pivot in 0..count {
        let largest =
            (pivot..count).max_by(|a, b| matrix[*a][pivot].abs().total_cmp(&matrix[*b][pivot].abs()))?;
        matrix.swap(pivot, largest);
        let line = matrix[pivot].clone();
        // Of the rows' own size: what is below is rounding.
        if line[pivot].abs() < 1e-10 * rows.len() as f64 {
            return None;
        }
        for (other, values) in matrix.iter_mut().enumerate() {
            if other != pivot {
                let factor = values[pivot] / line[pivot];
                values.iter_mut().zip(&line).for_each(|(value, of)| *value -= factor * of);
            }
        }
    }
    let mut costs = [0.0; 3];
    for (line, column) in columns.iter().enumerate() {
        costs[*column] = matrix[line][count] / matrix[line][line];
    }
    Some(costs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Steps as costs would have them, each by a factor off.
    fn steps(cost: &ComputeCost, off: impl Fn(usize) -> f64) -> Vec<MeasuredStep> {
        let mut steps = Vec::new();
        for (computed, tokens) in
            [(0, 256), (256, 256), (512, 256), (1024, 256), (1280, 100), (0, 64), (700, 20)]
        {
            steps.push(MeasuredStep { prefill: vec![(computed, tokens)], decode: Vec::new(), ms: 0.0 });
        }
        for (count, context) in [(1, 100), (1, 1500), (4, 300), (8, 900), (2, 700)] {
            steps.push(MeasuredStep { prefill: Vec::new(), decode: vec![context; count], ms: 0.0 });
        }
        for (index, step) in steps.iter_mut().enumerate() {
            let mut batch = Batch::default();
            step.prefill.iter().for_each(|(computed, tokens)| batch.add_prefill(*computed, *tokens));
            step.decode.iter().for_each(|computed| batch.add_decode(*computed));
            step.ms = (cost.step_us / 1e3 + cost.forward_ns(&batch) / 1e6) * off(index);
        }
        steps
    }

    proptest! {
        #[test]
        fn finds_the_costs_that_made_the_steps(
            step_us in 10.0..5000.0f64, token_us in 1.0..500.0f64, context_ns in 1.0..500.0f64,
            extra_us in 0.0..5000.0f64, sequence_us in 1.0..5000.0f64, decode_context_ns in 1.0..5000.0f64,
        ) {
            let cost = ComputeCost {
                step_us,
                prefill_us: 0.0,
                prefill_token_us: token_us,
                prefill_context_ns: context_ns,
                decode_us: extra_us,
                decode_sequence_us: sequence_us,
                decode_context_ns,
            };
            let fitted = fit(&steps(&cost, |_| 1.0)).expect("enough");
            prop_assert!(fitted.prefill_error < 1e-6 && fitted.decode_error < 1e-6, "{fitted:?}");
            let near = |a: f64, b: f64| (a - b).abs() <= 1e-3 * b + 1e-3;
            prop_assert!(near(fitted.compute.prefill_token_us, token_us), "{fitted:?}");
            prop_assert!(near(fitted.compute.prefill_context_ns, context_ns), "{fitted:?}");
            prop_assert!(near(fitted.compute.step_us + fitted.compute.decode_us, step_us + extra_us), "{fitted:?}");
        }
    }

    #[test]
    fn no_cost_is_negative_and_noise_stays_small() {
        let cost = ComputeCost {
            step_us: 900.0,
            prefill_token_us: 40.0,
            decode_sequence_us: 100.0,
            ..ComputeCost::default()
        };
        let fitted = fit(&steps(&cost, |index| if index % 2 == 0 { 1.05 } else { 0.95 })).expect("enough");
        let of = &fitted.compute;
        for value in [
            of.step_us,
            of.prefill_us,
            of.prefill_token_us,
            of.prefill_context_ns,
            of.decode_us,
            of.decode_context_ns,
        ] {
            assert!(value >= 0.0, "{of:?}");
        }
        assert!((of.prefill_token_us - 40.0).abs() < 4.0, "{of:?}");
        assert!(fitted.prefill_error < 0.06 && fitted.decode_error < 0.06, "{fitted:?}");
    }

    #[test]
    fn what_cannot_be_fitted_is_refused() {
        let cost =
            ComputeCost { step_us: 900.0, prefill_token_us: 40.0, decode_us: 5.0, ..ComputeCost::default() };
        let good = steps(&cost, |_| 1.0);
        let error = |steps: &[MeasuredStep]| fit(steps).expect_err("refused").to_string();
        assert!(
            error(&good[..7]).contains("0 steps of answers are too few to fit 3 costs"),
            "{}",
            error(&good[..7])
        );
        for (change, expected) in [
            (MeasuredStep { ms: 0.0, ..good[1].clone() }, "measured step 1 (from 0): it took 0 ms"),
            (MeasuredStep { ms: f64::NAN, ..good[1].clone() }, "it took NaN ms"),
            (MeasuredStep { prefill: Vec::new(), decode: Vec::new(), ms: 1.0 }, "nothing was computed"),
            (
                MeasuredStep { prefill: vec![(0, 1 << 60)], decode: Vec::new(), ms: 1.0 },
                "more than 67108864 tokens",
            ),
        ] {
            let mut steps = good.clone();
            steps[1] = change;
            assert!(error(&steps).contains(expected), "{}", error(&steps));
        }
    }
}
