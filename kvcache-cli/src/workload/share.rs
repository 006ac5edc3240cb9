//! `kvcache workload share`.

use std::fmt::Write;

use kvcache_workload::{
    Distribution, InvalidParameter, Popularity, Preset, Rate, Share, ShareClass, ShareLengths,
};

use super::{SeedArgs, WorkloadError};

/// Makes prompts that share prefixes, each drawn independently of the others.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Published mix to start from; `--list-presets` shows all.
    #[arg(long, value_name = "NAME", value_parser = Preset::named, conflicts_with = "class")]
    preset: Option<&'static Preset>,
    /// Prints the presets, each as the `--class` that it stands for.
    #[arg(long)]
    list_presets: bool,
    /// Class of requests; give several for a mix. As
    /// `name=a,weight=1,prefixes=10,popularity=uniform,prompt=DIST,shared=DIST, output=DIST`, or with
    /// `prefix=DIST,suffix=DIST` for prefixes with a length of their own. DIST is `100`, `uniform:LOW:HIGH`,
    /// `normal:MEAN:SD`, `lognormal:MEAN:SD` or `pareto:MEAN:SD`, and `@LOW..HIGH` behind it draws what is outside
    /// again.
    #[arg(long, value_name = "CLASS")]
    class: Vec<ShareClass>,
    /// Number of requests.
    #[arg(long, value_name = "COUNT")]
    requests: Option<u64>,
    /// Arrivals a second: `poisson:RATE`, `constant:RATE`, `burst:LOW:HIGH:PERIOD:SHARE`,
    /// `step:RATE:SECONDS,...,RATE` or `sine:MEAN:AMPLITUDE:PERIOD`.
    #[arg(long, value_name = "RATE", default_value = "poisson:1")]
    rate: Rate,
    /// Number of prefixes, of every class.
    #[arg(long, value_name = "COUNT")]
    prefixes: Option<u64>,
    /// Which prefix how often, in every class: `uniform` or `zipf:EXPONENT`.
    #[arg(long, value_name = "POPULARITY")]
    popularity: Option<Popularity>,
    /// Tokens of a prompt, of every class.
    #[arg(long, value_name = "DIST", conflicts_with_all = ["prefix_tokens", "suffix_tokens"])]
    prompt_tokens: Option<Distribution>,
    /// Fraction of a prompt that is its prefix, of every class.
    #[arg(long, value_name = "DIST", conflicts_with_all = ["prefix_tokens", "suffix_tokens"])]
    shared: Option<Distribution>,
    /// Tokens of a prefix, of every class.
    #[arg(long, value_name = "DIST")]
    prefix_tokens: Option<Distribution>,
    /// Tokens of a prompt behind its prefix, of every class.
    #[arg(long, value_name = "DIST")]
    suffix_tokens: Option<Distribution>,
    /// Tokens of an answer, of every class.
    #[arg(long, value_name = "DIST")]
    output_tokens: Option<Distribution>,
    #[command(flatten)]
    seed: SeedArgs,
}

pub(super) fn run(args: &Args) -> Result<String, WorkloadError> {
    if args.list_presets {
        return presets();
    }
    let mut classes = match args.preset {
        Some(preset) => preset.classes()?,
        None if args.class.is_empty() => vec![class_of(args)?],
        None => args.class.clone(),
    };
    for class in &mut classes {
        class.prefixes = args.prefixes.unwrap_or(class.prefixes);
        class.popularity = args.popularity.unwrap_or(class.popularity);
        class.lengths = lengths(Some(&class.lengths), args)?;
        class.output_tokens = args.output_tokens.as_ref().unwrap_or(&class.output_tokens).clone();
    }
    let requests = args.requests.or(args.preset.map(|preset| preset.requests)).unwrap_or(REQUESTS);
    let share = Share { classes, requests, rate: args.rate.clone(), seed: args.seed.seed };
    args.seed.write(share.requests()?.map(Ok))
}

/// The class of a command that names none.
fn class_of(args: &Args) -> Result<ShareClass, InvalidParameter> {
    Ok(ShareClass {
        name: "share".to_owned(),
        weight: 1.0,
        prefixes: 10,
        popularity: Popularity::Uniform,
        lengths: lengths(None, args)?,
        output_tokens: "64".parse()?,
    })
}

/// The lengths of a class, with those of the command line in the place of its own.
fn lengths(own: Option<&ShareLengths>, args: &Args) -> Result<ShareLengths, InvalidParameter> {
    let choose = |given: &Option<Distribution>, own: Option<&Distribution>, name: &str| {
        given
            .as_ref()
            .or(own)
            .cloned()
            .ok_or_else(|| InvalidParameter::new(format!("{name} is missing beside the other")))
    };
    if args.prompt_tokens.is_some() || args.shared.is_some() {
        let own = match own {
            Some(ShareLengths::Fraction { prompt_tokens, shared }) => Some((prompt_tokens, shared)),
            _ => None,
        };
        return Ok(ShareLengths::Fraction {
            prompt_tokens: choose(&args.prompt_tokens, own.map(|own| own.0), "--prompt-tokens")?,
            shared: choose(&args.shared, own.map(|own| own.1), "--shared")?,
        });
    }
    if args.prefix_tokens.is_some() || args.suffix_tokens.is_some() {
        let own = match own {
            Some(ShareLengths::Parts { prefix_tokens, suffix_tokens }) => {
                Some((prefix_tokens, suffix_tokens))
            }
            _ => None,
        };
        return Ok(ShareLengths::Parts {
            prefix_tokens: choose(&args.prefix_tokens, own.map(|own| own.0), "--prefix-tokens")?,
            suffix_tokens: choose(&args.suffix_tokens, own.map(|own| own.1), "--suffix-tokens")?,
        });
    }
    own.cloned().ok_or_else(|| {
        InvalidParameter::new(
            "nothing says how long prompts are; give --preset, --class, --prompt-tokens and --shared, or \
             --prefix-tokens and --suffix-tokens",
        )
    })
}

fn presets() -> Result<String, WorkloadError> {
    let mut text = String::new();
    for preset in Preset::ALL {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}: {} requests. {}", preset.name, preset.requests, preset.origin);
        for class in preset.classes()? {
            let _ = writeln!(text, "  --class {class}");
        }
    }
    Ok(text)
}

/// Requests where neither a preset nor the user says how many.
const REQUESTS: u64 = 2000;
