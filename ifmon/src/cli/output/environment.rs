//! A line as the environment of a hook.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
};

use serde_json::Value as Json;

use super::{
    json::{By, timestamp},
    line::{Line, Value},
};
use crate::cli::children::Environment;

impl Line<'_> {
    /// `IFMON_` and the field in capitals, `IFMON_BY_PID` and so on for who did it. What is unknown
    /// is empty; what the line does not have is not set. Names are given byte for byte.
    pub(crate) fn to_environment(&self) -> Environment {
        let mut variables = Environment::new();
        for (name, value) in &self.fields {
            let name = variable("IFMON", name);
            let value = match value {
                Value::Unknown => OsString::new(),
                Value::Time(time) => timestamp(*time).into(),
                Value::Word(word) => word.into(),
                Value::Number(number) => number.to_string().into(),
                Value::Flag(flag) => flag.to_string().into(),
                Value::Name(name) => OsStr::from_bytes(name.as_bytes()).to_owned(),
                Value::Kind(kind) => OsStr::from_bytes(kind.as_bytes()).to_owned(),
                Value::Pattern(pattern) => OsStr::from_bytes(pattern.as_bytes()).to_owned(),
                Value::NetnsName(name) => (*name).to_owned(),
                Value::By(actor, origin) => {
                    if let Ok(by) = serde_json::to_value(By::of(actor, origin)) {
                        flatten(&name, by, &mut variables);
                    }
                    continue;
                }
                Value::Peer(peer) => {
                    let mut peer = (*peer).clone();
                    if let Some(netns_name) = peer.netns_name.take() {
                        variables.push((variable(&name, "netns_name"), netns_name));
                    }
                    if let Ok(peer) = serde_json::to_value(peer) {
                        flatten(&name, peer, &mut variables);
                    }
                    continue;
                }
            };
            variables.push((name, value));
        }
        variables
    }
}

fn variable(prefix: &str, name: &str) -> String {
    format!("{prefix}_{}", name.to_uppercase())
}

fn flatten(name: &str, value: Json, variables: &mut Environment) {
    let value = match value {
        Json::Object(fields) => {
            for (field, value) in fields {
                flatten(&variable(name, &field), value, variables);
            }
            return;
        }
        Json::Null => OsString::new(),
        Json::String(value) => value.into(),
        other @ (Json::Bool(_) | Json::Number(_) | Json::Array(_)) => other.to_string().into(),
    };
    variables.push((name.to_owned(), value));
}
