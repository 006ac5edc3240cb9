//! Mixes of prompts that others have published, and one of ours.

use crate::error::InvalidParameter;
use crate::share::ShareClass;

/// A mix with a name.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// As on the command line.
    pub name: &'static str,
    /// Where its numbers are from.
    pub origin: &'static str,
    /// How many requests it has if nothing else is said.
    pub requests: u64,
    classes: &'static [&'static str],
}

impl Preset {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        // AIBrix's generator draws 200 prompts of each of 10 prefixes.
        Self {
            name: "toolbench",
            origin: "Preble (Srivatsa et al., ICLR 2025): calls of tools",
            requests: 2000,
            classes: &[
                "name=toolbench,prefixes=10,prompt=normal:1835:742@1..,shared=normal:0.85:0.13,output=64",
            ],
        },
        Self {
            name: "embodied",
            origin: "Preble: an agent in a virtual house",
            requests: 2000,
            classes: &[
                "name=embodied,prefixes=10,prompt=normal:2285:471@1..,shared=normal:0.97:0.14,output=64",
            ],
        },
        Self {
            name: "programming",
            origin: "Preble: competitive programming",
            requests: 2000,
            classes: &[
                "name=programming,prefixes=10,prompt=normal:3871:1656@1..,shared=normal:0.97:0.074,output=64",
            ],
        },
        Self {
            name: "videoqa",
            origin: "Preble: questions about videos",
            requests: 2000,
            classes: &[
                "name=videoqa,prefixes=10,prompt=normal:9865:5976@1..,shared=normal:0.88:0.32,output=64",
            ],
        },
        Self {
            name: "loogle",
            origin: "Preble: questions about long documents",
            requests: 2000,
            classes: &[
                "name=loogle,prefixes=10,prompt=normal:23474:6105@1..,shared=normal:0.91:0.24,output=64",
            ],
        },
        // Their configuration has 12, 8 and 79 samples, and no spread of the shares.
        Self {
            name: "aibrix-shared",
            origin: "AIBrix, synthetic_shared of its benchmarks: two classes with one prefix each, one that shares little",
            requests: 2000,
            classes: &[
                "name=short,weight=12,prompt=normal:3997:17@1..,shared=0.95,output=64",
                "name=long,weight=8,prompt=normal:5868:28@1..,shared=0.97,output=64",
                "name=fresh,weight=79,prompt=normal:2617:1338@1..,shared=0.03,output=64",
            ],
        },
        // BIRD's development set has 1,534 questions about 11 databases.
        Self {
            name: "bird-text2sql",
            origin: "ours, after the shape of BIRD (Li et al., NeurIPS 2023): short questions about few databases' schemas",
            requests: 1534,
            classes: &[
                "name=text2sql,prefixes=11,popularity=zipf:0.5,prefix=lognormal:3000:1500@500..12000,\
                 suffix=lognormal:60:30@10..400,output=lognormal:60:40@5..500",
            ],
        },
    ];

    /// The preset of this name.
    ///
    /// # Errors
    ///
    /// If there is none; all names are in the message.
    pub fn named(name: &str) -> Result<&'static Self, InvalidParameter> {
        Self::ALL.iter().find(|preset| preset.name == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|preset| preset.name).collect();
            InvalidParameter::new(format!("`{name}` is no preset; there are {}", names.join(", ")))
        })
    }

    /// Its classes.
    ///
    /// # Errors
    ///
    /// None; a test reads all of them.
    pub fn classes(&self) -> Result<Vec<ShareClass>, InvalidParameter> {
        self.classes.iter().map(|class| class.parse()).collect()
    }
}
