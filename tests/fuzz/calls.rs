//! What a client of the agent sends.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

use self::call::{Call, Method, WatchParameters};

/// The program's own, which is in no library.
#[expect(dead_code, reason = "replies to calls that succeed are not looked at here")]
#[rustfmt::skip]
#[path = "../../ifmon/src/cli/service/call.rs"]
mod call;

/// What a call knows of the hub.
mod hub {
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) enum Refusal {
        #[expect(dead_code, reason = "there are no limits here")]
        Limit(&'static str),
        #[expect(dead_code, reason = "nothing is watched here")]
        Failed(String),
    }
}

/// How the program writes an object, but for what a terminal could obey in it.
mod json {
    pub(crate) fn write(to: &mut Vec<u8>, object: &impl serde::Serialize) {
        serde_json::to_writer(to, object).expect("it can be written");
    }
}

fuzz_target!(|bytes: &[u8]| {
    for message in bytes.split(|&byte| byte == 0) {
        let Ok(Call { method, .. }) = Call::parse(message) else {
            continue;
        };
        match method {
            Ok(Method::Watch(watch)) => check(&watch),
            Ok(_) => {}
            Err(fault) => {
                let reply = fault.reply();
                let (end, object) = reply.split_last().expect("it is not empty");
                assert!(*end == 0 && !object.contains(&0), "{reply:?}");
                let reply: Value = serde_json::from_slice(object).expect("it is JSON");
                assert!(reply["error"].is_string() && reply["parameters"].is_object());
            }
        }
    }
});

/// Asked for as it was understood, it is understood as the same.
fn check(watch: &WatchParameters) {
    let WatchParameters { targets, netns } = watch;
    assert!(!targets.is_empty());
    assert!(targets.values().all(|&expected| expected != Some(0)));
    let interfaces: Vec<String> = targets.keys().map(ToString::to_string).collect();
    let expect: serde_json::Map<String, Value> = targets
        .iter()
        .filter_map(|(name, expected)| {
            Some((name.to_string(), expected.as_ref()?.to_owned().into()))
        })
        .collect();
    let call = json!({
        "method": "io.ifmon.Watch",
        "parameters": { "interfaces": interfaces, "expect": expect, "netns": netns },
        "more": true,
    });
    let again = Call::parse(call.to_string().as_bytes()).expect("a call");
    assert_eq!(
        again.method.as_ref(),
        Ok(&Method::Watch(WatchParameters {
            targets: targets.clone(),
            netns: netns.clone()
        }))
    );
}
