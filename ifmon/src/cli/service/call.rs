//! What clients ask for: calls of the varlink protocol (varlink.org) taken apart, and errors
//! written.

use std::{borrow::Cow, collections::BTreeMap, rc::Rc};

use ifmon::InterfaceName;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use super::{hub::Refusal, json::write};

/// The interface as it stands in the tree.
pub(super) const DESCRIPTION: &str = include_str!("../../../io.ifmon.varlink");

/// `org.varlink.service` of the protocol's own specification.
const SERVICE: &str = "\
# What every service of the protocol answers.
interface org.varlink.service

method GetInfo() -> (
  vendor: string,
  product: string,
  version: string,
  url: string,
  interfaces: []string
)

method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
error PermissionDenied ()
error ExpectedMore ()
";

/// A call.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) method: Result<Method, Fault>,
    /// More than one reply is welcome.
    pub(crate) more: bool,
    /// No reply is wanted.
    pub(crate) oneway: bool,
}

/// What is called.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Method {
    GetInfo,
    GetInterfaceDescription(&'static str),
    Watch(WatchParameters),
    Sync,
    List,
    Info,
    Check,
}

/// The parameters of a call of `Watch`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WatchParameters {
    /// With the index of the device that should hold the name.
    pub(crate) targets: BTreeMap<InterfaceName, Option<u32>>,
    pub(crate) netns: Option<String>,
}

/// Why a call fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    InterfaceNotFound(String),
    MethodNotFound(String),
    InvalidParameter(String),
    ExpectedMore,
    NotPermitted(String),
    Refused(Refusal),
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// What is no call at all. Nobody who speaks the protocol sends this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl Call {
    /// Takes a message apart, without its NUL.
    pub(crate) fn parse(message: &[u8]) -> Result<Self, Malformed> {
        #[derive(Deserialize)]
        struct Message<'a> {
            #[serde(borrow)]
            method: Cow<'a, str>,
            #[serde(default)]
            parameters: Option<Map<String, Value>>,
            #[serde(default)]
            more: Option<bool>,
            #[serde(default)]
            oneway: Option<bool>,
        }
        let Message {
            method,
            parameters,
            more,
            oneway,
        } = serde_json::from_slice(message).map_err(|_| Malformed)?;
        Ok(Self {
            method: Method::of(&method, Parameters(parameters.unwrap_or_default())),
            more: more.unwrap_or_default(),
            oneway: oneway.unwrap_or_default(),
        })
    }
}

impl Method {
    fn of(method: &str, mut parameters: Parameters) -> Result<Self, Fault> {
        let method = match method {
            "org.varlink.service.GetInfo" => Self::GetInfo,
            "org.varlink.service.GetInterfaceDescription" => {
                let interface: String = parameters.take("interface")?;
                Self::GetInterfaceDescription(match interface.as_str() {
                    "io.ifmon" => DESCRIPTION,
                    "org.varlink.service" => SERVICE,
                    _ => return Err(Fault::InterfaceNotFound(interface)),
                })
            }
            "io.ifmon.Watch" => Self::Watch(WatchParameters::of(&mut parameters)?),
            "io.ifmon.Sync" => Self::Sync,
            "io.ifmon.List" => Self::List,
            "io.ifmon.Info" => Self::Info,
            "io.ifmon.Check" => Self::Check,
            _ => {
                let interface = method.rsplit_once('.').map_or(method, |(name, _)| name);
                return Err(match interface {
                    "io.ifmon" | "org.varlink.service" => Fault::MethodNotFound(method.to_owned()),
                    _ => Fault::InterfaceNotFound(interface.to_owned()),
                });
            }
        };
        parameters.end()?;
        Ok(method)
    }
}

impl WatchParameters {
    fn of(parameters: &mut Parameters) -> Result<Self, Fault> {
        let invalid = |parameter: &str| Fault::InvalidParameter(parameter.to_owned());
        let interfaces: Vec<String> = parameters.take("interfaces")?;
        let expect: Option<BTreeMap<String, u32>> = parameters.take("expect")?;
        let netns = parameters.take("netns")?;
        let name = |name: &String| InterfaceName::new(name).ok();
        let mut targets = BTreeMap::new();
        for interface in &interfaces {
            targets.insert(name(interface).ok_or_else(|| invalid("interfaces"))?, None);
        }
        if targets.is_empty() {
            return Err(invalid("interfaces"));
        }
        for (interface, ifindex) in expect.unwrap_or_default() {
            // No device has the index 0.
            let target = name(&interface)
                .filter(|_| ifindex != 0)
                .and_then(|name| targets.get_mut(&name))
                .ok_or_else(|| invalid("expect"))?;
            *target = Some(ifindex);
        }
        Ok(Self { targets, netns })
    }
}

/// The parameters of a call that were not yet taken.
struct Parameters(Map<String, Value>);

impl Parameters {
    fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, Fault> {
        let Self(parameters) = self;
        let value = parameters.remove(name).unwrap_or(Value::Null);
        serde_json::from_value(value).map_err(|_| Fault::InvalidParameter(name.to_owned()))
    }

    fn end(self) -> Result<(), Fault> {
        let Self(parameters) = self;
        match parameters.into_iter().next() {
            Some((name, _)) => Err(Fault::InvalidParameter(name)),
            None => Ok(()),
        }
    }
}

impl Fault {
    /// The error as a reply.
    pub(crate) fn reply(&self) -> Rc<[u8]> {
        let (error, parameters) = match self {
            Self::InterfaceNotFound(interface) => (
                "org.varlink.service.InterfaceNotFound",
                json!({ "interface": interface }),
            ),
            Self::MethodNotFound(method) => (
                "org.varlink.service.MethodNotFound",
                json!({ "method": method }),
            ),
            Self::InvalidParameter(parameter) => (
                "org.varlink.service.InvalidParameter",
                json!({ "parameter": parameter }),
            ),
            Self::ExpectedMore => ("org.varlink.service.ExpectedMore", json!({})),
            Self::NotPermitted(reason) => ("io.ifmon.NotPermitted", json!({ "reason": reason })),
            Self::Refused(Refusal::Limit(what)) => ("io.ifmon.TooMany", json!({ "what": what })),
            Self::Refused(Refusal::Failed(reason)) => {
                ("io.ifmon.CannotWatch", json!({ "reason": reason }))
            }
        };
        message(&json!({ "error": error, "parameters": parameters }))
    }
}

/// A reply of the protocol. When it `continues`, another follows.
pub(crate) fn reply(parameters: &impl Serialize, continues: bool) -> Rc<[u8]> {
    #[derive(Serialize)]
    struct Reply<'a, T> {
        parameters: &'a T,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        continues: bool,
    }
    message(&Reply {
        parameters,
        continues,
    })
}

/// An object that ends with NUL.
fn message(object: &impl Serialize) -> Rc<[u8]> {
    let mut bytes = Vec::new();
    // What is written here has no keys but strings, so it cannot fail.
    write(&mut bytes, object);
    bytes.push(0);
    bytes.into()
}

#[cfg(test)]
mod tests;
