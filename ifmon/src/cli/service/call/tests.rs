use std::collections::BTreeMap;

use ifmon::InterfaceName;

use super::{Call, DESCRIPTION, Fault, Malformed, Method, SERVICE, WatchParameters};

fn method(message: &str) -> Result<Method, Fault> {
    Call::parse(message.as_bytes())
        .expect("an object with a method")
        .method
}

fn interface(name: &str) -> InterfaceName {
    InterfaceName::new(name).expect("a good name")
}

#[test]
fn a_watch_has_names_and_what_is_expected_of_them() {
    let call = Call::parse(
        br#"{"method":"io.ifmon.Watch","more":true,
            "parameters":{"interfaces":["wg0","wg1","wg0"],"expect":{"wg1":7}}}"#,
    )
    .expect("a call");
    let targets = BTreeMap::from([(interface("wg0"), None), (interface("wg1"), Some(7))]);
    assert_eq!(
        call.method,
        Ok(Method::Watch(WatchParameters {
            targets,
            netns: None
        }))
    );
    assert!(call.more && !call.oneway);
}

#[test]
fn what_is_wrong_with_a_call_is_named() {
    let invalid = |name: &str| Err(Fault::InvalidParameter(name.to_owned()));
    for (parameters, fault) in [
        (r#"{}"#, invalid("interfaces")),
        (r#"{"interfaces":[]}"#, invalid("interfaces")),
        (r#"{"interfaces":"wg0"}"#, invalid("interfaces")),
        (r#"{"interfaces":["a/b"]}"#, invalid("interfaces")),
        (
            r#"{"interfaces":["0123456789012345"]}"#,
            invalid("interfaces"),
        ),
        (
            r#"{"interfaces":["a"],"expect":{"b":7}}"#,
            invalid("expect"),
        ),
        (
            r#"{"interfaces":["a"],"expect":{"a":0}}"#,
            invalid("expect"),
        ),
        (
            r#"{"interfaces":["a"],"expect":{"a":-1}}"#,
            invalid("expect"),
        ),
        (r#"{"interfaces":["a"],"netns":7}"#, invalid("netns")),
        (r#"{"interfaces":["a"],"pid":7}"#, invalid("pid")),
    ] {
        let message = format!(r#"{{"method":"io.ifmon.Watch","parameters":{parameters}}}"#);
        assert_eq!(method(&message), fault, "{parameters}");
    }
    for (name, fault) in [
        (
            "io.ifmon.Stop",
            Fault::MethodNotFound("io.ifmon.Stop".to_owned()),
        ),
        (
            "io.ifmo.Watch",
            Fault::InterfaceNotFound("io.ifmo".to_owned()),
        ),
        ("Watch", Fault::InterfaceNotFound("Watch".to_owned())),
    ] {
        assert_eq!(method(&format!(r#"{{"method":"{name}"}}"#)), Err(fault));
    }
    let null = r#"{"method":"io.ifmon.Info","parameters":null,"more":null}"#;
    assert_eq!(method(null), Ok(Method::Info));
}

#[test]
fn what_is_no_call_is_malformed() {
    for message in [
        "",
        "{",
        "[]",
        "7",
        r#"{"parameters":{}}"#,
        r#"{"method":7}"#,
        r#"{"method":"a.b","parameters":[]}"#,
        r#"{"method":"a.b"} more"#,
        &"[".repeat(60_000),
        &format!(
            r#"{{"method":"a.b","parameters":{}"#,
            r#"{"a":"#.repeat(10_000)
        ),
    ] {
        let parsed = Call::parse(message.as_bytes());
        assert_eq!(parsed.err(), Some(Malformed), "{message:.40}");
    }
    assert!(Call::parse(b"{\"method\":\"\xff\"}").is_err());
}

#[test]
fn the_published_interfaces_name_every_method_and_error() {
    for name in ["Watch", "List", "Info", "Check"] {
        assert!(DESCRIPTION.contains(&format!("\nmethod {name}(")), "{name}");
        let call = format!(r#"{{"method":"io.ifmon.{name}"}}"#);
        assert!(!matches!(method(&call), Err(Fault::MethodNotFound(_))));
    }
    for fault in [
        Fault::InterfaceNotFound(String::new()),
        Fault::MethodNotFound(String::new()),
        Fault::InvalidParameter(String::new()),
        Fault::ExpectedMore,
        Fault::NotPermitted(String::new()),
        Fault::Refused(super::Refusal::Limit("")),
        Fault::Refused(super::Refusal::Failed(String::new())),
    ] {
        let reply = fault.reply();
        let (nul, object) = reply.split_last().expect("a reply");
        assert_eq!(*nul, 0);
        let object: serde_json::Value = serde_json::from_slice(object).expect("JSON");
        let error = object["error"].as_str().expect("a name");
        let (interface, name) = error.rsplit_once('.').expect("an interface");
        let description = match interface {
            "io.ifmon" => DESCRIPTION,
            "org.varlink.service" => SERVICE,
            other => panic!("{other}"),
        };
        assert!(
            description.contains(&format!("\nerror {name} (")),
            "{error}"
        );
    }
}
