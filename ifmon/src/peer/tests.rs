use super::*;

const HERE: NetnsId = NetnsId(1);

/// What is there, and how often it was searched for.
#[derive(Default)]
struct Host {
    place: NetnsFacts,
    searches: u32,
}

impl FindNetns for Host {
    fn by(&mut self, name: Option<&OsStr>, process: Option<u32>) -> NetnsFacts {
        let NetnsFacts {
            netns,
            netns_name,
            container,
            ..
        } = self.place.clone();
        let name = netns_name.filter(|known| name == Some(known));
        let process = process.filter(|_| process == self.place.process);
        NetnsFacts {
            netns: netns.filter(|_| name.is_some() || process.is_some()),
            netns_name: name,
            process,
            container: container.filter(|_| process.is_some()),
        }
    }

    fn search(&mut self) -> NetnsFacts {
        self.searches += 1;
        self.place.clone()
    }
}

fn place(pid: u32, id: &str) -> NetnsFacts {
    NetnsFacts {
        netns: Some(NetnsId(pid)),
        netns_name: None,
        process: Some(pid),
        container: Some(Container {
            runtime: Some("lxc"),
            id: id.to_owned(),
        }),
    }
}

#[test]
fn a_container_is_searched_for_once_and_again_when_it_is_not_there_any_more() {
    let (mut memory, mut host, now) = (NetnsMemory::default(), Host::default(), Instant::now());
    host.place = place(7, "one");
    for later in 0..5 {
        let now = now + IN_VAIN * later;
        assert_eq!(memory.place((HERE, 0), now, &mut host), host.place);
    }
    assert_eq!(host.searches, 1);
    // The same number of another namespace is another namespace.
    memory.place((NetnsId(2), 0), now, &mut host);
    assert_eq!(host.searches, 2);
    for next in [place(8, "one"), place(8, "two"), NetnsFacts::default()] {
        host.place = next;
        let before = host.searches;
        assert_eq!(memory.place((HERE, 0), now, &mut host), host.place);
        assert_eq!(host.searches, before + 1);
    }
}

#[test]
fn where_there_is_no_container_it_is_searched_again_after_a_while() {
    let (mut memory, mut host, now) = (NetnsMemory::default(), Host::default(), Instant::now());
    host.place.netns = Some(NetnsId(9));
    host.place.netns_name = Some("web".into());
    for part in 0..3 {
        let now = now + IN_VAIN * part / 3;
        assert_eq!(memory.place((HERE, 0), now, &mut host), host.place);
    }
    assert_eq!(host.searches, 1);
    memory.place((HERE, 0), now + IN_VAIN, &mut host);
    assert_eq!(host.searches, 2);
    // Whoever has its number now has not its name.
    host.place = place(7, "one");
    memory.place((HERE, 0), now + IN_VAIN, &mut host);
    assert_eq!(host.searches, 3);
}

#[test]
fn the_namespaces_that_are_remembered_are_those_that_were_asked_for_last() {
    let (mut memory, mut host, now) = (NetnsMemory::default(), Host::default(), Instant::now());
    host.place = place(7, "one");
    for nsid in (0..=REMEMBERED as i32).chain([1, 0]) {
        memory.place((HERE, nsid), now, &mut host);
    }
    assert_eq!(memory.places.len(), REMEMBERED);
    assert_eq!(host.searches, REMEMBERED as u32 + 2);
}

#[test]
fn any_hierarchy_shows_the_container() {
    let id = "0123456789abcdef".repeat(4);
    for text in [
        format!("0::/system.slice/docker-{id}.scope\n"),
        format!("9:name=systemd:/docker/{id}\n0::/\n"),
        format!("2:cpu,cpuacct:/../web/docker-{id}.scope\n0::/\n"),
    ] {
        let container = container_in(text.as_bytes()).expect("there is one");
        assert_eq!(
            (container.runtime, container.id),
            (Some("docker"), id.clone())
        );
    }
    for text in ["", "0::/\n", "0::/system.slice/ssh.service\n", "\n:\n::\n"] {
        assert_eq!(container_in(text.as_bytes()), None);
    }
}

/// The kernel's own answers, for a device that every host has and that is no end of a pair.
#[test]
fn lo_has_no_peer() {
    let netns = Netns::current().expect("there is one");
    let mut query = Query::new(&netns).expect("anybody may ask");
    let name = InterfaceName::new("lo").expect("a good name");
    assert_eq!(query.other_end(1, &name).expect("an answer"), None);
}
