//! What was measured: numbers with names, units and goals.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::statistics::Quantile;

/// One measured number.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figure {
    /// The row of measurements that it belongs to.
    pub(super) row: String,
    /// What was measured.
    pub(super) what: String,
    /// Of whom.
    pub(super) subject: String,
    pub(super) value: f64,
    /// Empty for counts and ratios.
    pub(super) unit: String,
    /// Reached by a value that is no greater.
    pub(super) goal: Option<f64>,
    /// Of what is a quantile, how sure it is.
    pub(super) spread: Option<Spread>,
}

/// See [`Quantile`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) count: usize,
}

impl Figure {
    pub(super) fn is_reached(&self) -> Option<bool> {
        self.goal.map(|goal| self.value <= goal)
    }

    fn to_json(&self) -> Value {
        let Self {
            row,
            what,
            subject,
            value,
            unit,
            goal,
            spread,
        } = self;
        let mut json = json!({
            "row": row,
            "what": what,
            "subject": subject,
            "value": value,
            "unit": unit,
            "goal": goal,
            "reached": self.is_reached(),
        });
        if let Some(Spread { low, high, count }) = spread {
            json["low"] = json!(low);
            json["high"] = json!(high);
            json["count"] = json!(count);
        }
        json
    }

    fn from_json(json: &Value) -> Option<Self> {
        let text = |key: &str| Some(json[key].as_str()?.to_owned());
        Some(Self {
            row: text("row")?,
            what: text("what")?,
            subject: text("subject")?,
            value: json["value"].as_f64()?,
            unit: text("unit")?,
            goal: json["goal"].as_f64(),
            spread: Spread::from_json(json),
        })
    }
}

impl Spread {
    fn from_json(json: &Value) -> Option<Self> {
        Some(Self {
            low: json["low"].as_f64()?,
            high: json["high"].as_f64()?,
            count: usize::try_from(json["count"].as_u64()?).ok()?,
        })
    }
}

/// All that was measured in one place.
#[derive(Debug)]
pub(super) struct Figures {
    /// The machine and its kernel.
    pub(super) place: String,
    /// A small run, not to be quoted.
    pub(super) quick: bool,
    pub(super) figures: Vec<Figure>,
}

impl Figures {
    pub(super) fn push(&mut self, row: &str, what: &str, subject: &str, value: f64, unit: &str) {
        self.figures.push(Figure {
            row: row.to_owned(),
            what: what.to_owned(),
            subject: subject.to_owned(),
            value,
            unit: unit.to_owned(),
            goal: None,
            spread: None,
        });
    }

    pub(super) fn push_quantile(
        &mut self,
        row: &str,
        what: &str,
        subject: &str,
        quantile: Quantile,
        unit: &str,
    ) {
        let Quantile {
            value,
            low,
            high,
            count,
        } = quantile;
        self.push(row, what, subject, value, unit);
        if let Some(figure) = self.figures.last_mut() {
            figure.spread = Some(Spread { low, high, count });
        }
    }

    /// Gives the figure pushed last a goal.
    pub(super) fn goal(&mut self, goal: f64) {
        if let Some(figure) = self.figures.last_mut() {
            figure.goal = Some(goal);
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let Self {
            place,
            quick,
            figures,
        } = self;
        let figures: Vec<Value> = figures.iter().map(Figure::to_json).collect();
        json!({ "place": place, "quick": quick, "figures": figures })
    }

    pub(super) fn from_json(json: &Value) -> Result<Self> {
        let figures = json["figures"].as_array().context("no figures")?;
        Ok(Self {
            place: json["place"].as_str().context("no place")?.to_owned(),
            quick: json["quick"].as_bool().context("not said whether quick")?,
            figures: figures
                .iter()
                .map(Figure::from_json)
                .collect::<Option<_>>()
                .context("an incomplete figure")?,
        })
    }
}
