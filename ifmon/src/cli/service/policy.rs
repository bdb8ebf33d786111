//! Who may ask what: `--policy`.

use std::fmt;

/// How many may do something. Each takes in the ones before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Circle {
    /// Root in the agent's own network namespace.
    Root,
    /// The group that owns the socket, there.
    Group,
    All,
}

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Watch,
    Who,
    Netns,
}

/// One rule of the command line, such as `watch=group`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule(Subject, Circle);

/// All rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// Who may watch and list the interfaces of the own namespace.
    pub(super) watch: Circle,
    /// Who is told who made a change, and what the host calls its namespaces; in the agent's own
    /// namespace only.
    pub(super) who: Circle,
    /// Who may watch and list those of any namespace.
    pub(super) netns: Circle,
}

impl Rule {
    pub(crate) fn parse(word: &str) -> Result<Self, String> {
        let rule = || {
            let (subject, circle) = word.split_once('=')?;
            let subject = match subject {
                "watch" => Subject::Watch,
                "who" => Subject::Who,
                "netns" => Subject::Netns,
                _ => return None,
            };
            let circle = match circle {
                "root" => Circle::Root,
                "group" => Circle::Group,
                // Nobody but root of the host has a reason to see all of its containers.
                "all" if subject != Subject::Netns => Circle::All,
                _ => return None,
            };
            Some(Self(subject, circle))
        };
        rule().ok_or_else(|| {
            "a rule is watch= or who= with root, group or all, or netns= with root or group"
                .to_owned()
        })
    }
}

impl Policy {
    /// A later rule goes before an earlier one.
    pub(super) fn new(rules: &[Rule]) -> Self {
        let mut policy = Self {
            watch: Circle::All,
            who: Circle::Group,
            netns: Circle::Root,
        };
        for &Rule(subject, circle) in rules {
            match subject {
                Subject::Watch => policy.watch = circle,
                Subject::Who => policy.who = circle,
                Subject::Netns => policy.netns = circle,
            }
        }
        policy
    }
}

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root in the agent's own network namespace",
            Self::Group => "root and the group of the socket in the agent's own network namespace",
            Self::All => "everybody",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_the_last_one_counts() {
        let policy = |words: &[&str]| -> Result<Policy, String> {
            let rules: Result<Vec<_>, _> = words.iter().map(|word| Rule::parse(word)).collect();
            rules.map(|rules| Policy::new(&rules))
        };
        let usual = Policy {
            watch: Circle::All,
            who: Circle::Group,
            netns: Circle::Root,
        };
        assert_eq!(policy(&[]), Ok(usual));
        assert_eq!(
            policy(&["watch=root", "who=all", "netns=group", "watch=group"]),
            Ok(Policy {
                watch: Circle::Group,
                who: Circle::All,
                netns: Circle::Group,
            })
        );
        for wrong in [
            "",
            "watch",
            "watch=",
            "watch=nobody",
            "all=root",
            "netns=all",
            "who=All",
        ] {
            assert!(policy(&[wrong]).is_err(), "{wrong}");
        }
        assert!(Circle::Root < Circle::Group && Circle::Group < Circle::All);
    }
}
