//! The commands that the documents show, and how each of them is tried.
//!
//! A block of commands (` ```sh `) is run as it stands, unless a comment right before it, which
//! readers do not see, says otherwise:
//!
//! - `<!-- tried with: SCRIPT -->`: the script is run, in which `shown` stands for the block.
//! - `<!-- tried under systemd with: SCRIPT -->`: the same, by `cargo xtask systemd`.
//! - `<!-- not tried: REASON -->`: the reason is one of [`REASONS`].

/// What may keep a block from being tried.
pub const REASONS: [&str; 5] = [
    "it takes a cluster",
    "it takes packages that are published",
    "it is what builds and tests the tree",
    "it takes docker",
    "it takes a terminal",
];

/// What the blocks of the documents can be: commands, or what programs write or read.
const LANGUAGES: [&str; 7] = ["sh", "", "json", "yaml", "rust", "python", "go"];

/// Some commands of a document.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    /// The line that it begins in.
    pub line: usize,
    /// The commands.
    pub shown: String,
    /// How they are tried.
    pub trial: Trial,
}

/// How commands are tried.
#[derive(Debug, PartialEq, Eq)]
pub enum Trial {
    /// By this script, in a network namespace.
    Here(String),
    /// By this script, where a real systemd runs.
    Systemd(String),
    /// Not at all, for this reason.
    Left(String),
}

impl Block {
    /// The script that tries it, with what it shows as a function.
    pub fn script(&self) -> Option<String> {
        match &self.trial {
            Trial::Here(script) | Trial::Systemd(script) => {
                Some(format!("shown() {{\n{}}}\n{script}\n", self.shown))
            }
            Trial::Left(_) => None,
        }
    }
}

/// Finds the blocks of a page. What cannot be understood is an error: nothing is passed over.
pub fn blocks(page: &str) -> Result<Vec<Block>, String> {
    let mut blocks = Vec::new();
    let mut comment = None;
    let mut lines = page.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let number = index + 1;
        if let Some(begin) = line.strip_prefix("<!--") {
            comment = Some(comment_from(begin, &mut lines)?);
        } else if let Some(language) = line.strip_prefix("```") {
            if !LANGUAGES.contains(&language) {
                return Err(format!("line {number}: what is {language:?}?"));
            }
            let mut shown = String::new();
            loop {
                let (_, line) = lines
                    .next()
                    .ok_or_else(|| format!("line {number}: the block has no end"))?;
                if line == "```" {
                    break;
                }
                shown.push_str(line);
                shown.push('\n');
            }
            if language == "sh" {
                let trial = trial(comment.take().as_deref())
                    .map_err(|error| format!("line {number}: {error}"))?;
                blocks.push(Block {
                    line: number,
                    shown,
                    trial,
                });
            }
        } else if comment.is_some() {
            return Err(format!(
                "line {number}: the comment before belongs to no commands"
            ));
        }
    }
    Ok(blocks)
}

/// The rest of a comment that has begun.
fn comment_from<'a>(
    begin: &str,
    lines: &mut impl Iterator<Item = (usize, &'a str)>,
) -> Result<String, String> {
    let mut text = begin.to_owned();
    loop {
        if let Some(text) = text.strip_suffix("-->") {
            return Ok(text.trim().to_owned());
        }
        let (_, line) = lines.next().ok_or("a comment has no end")?;
        text.push('\n');
        text.push_str(line);
    }
}

fn trial(comment: Option<&str>) -> Result<Trial, String> {
    let Some(comment) = comment else {
        return Ok(Trial::Here("shown".to_owned()));
    };
    if let Some(reason) = comment.strip_prefix("not tried: ") {
        return if REASONS.contains(&reason) {
            Ok(Trial::Left(reason.to_owned()))
        } else {
            Err(format!("{reason:?} is no reason to leave it out"))
        };
    }
    let (script, make): (_, fn(String) -> Trial) =
        if let Some(script) = comment.strip_prefix("tried with:") {
            (script, Trial::Here)
        } else if let Some(script) = comment.strip_prefix("tried under systemd with:") {
            (script, Trial::Systemd)
        } else {
            return Err(format!("{comment:?} says nothing that is known"));
        };
    if !script.split_whitespace().any(|word| word == "shown") {
        return Err("the script does not run what is shown".to_owned());
    }
    Ok(make(script.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_block_has_a_trial() {
        let page = "\
text
```sh
one
two
```
<!-- tried with: shown > out
grep three out -->
```sh
three
```
<!-- tried under systemd with: shown -->
```sh
four
```
<!-- not tried: it takes a cluster -->
```sh
five
```
```json
{}
```
";
        let found = blocks(page).expect("it is a good page");
        let trials: Vec<_> = found
            .iter()
            .map(|block| (block.line, block.shown.as_str(), &block.trial))
            .collect();
        assert_eq!(
            trials,
            [
                (2, "one\ntwo\n", &Trial::Here("shown".to_owned())),
                (
                    8,
                    "three\n",
                    &Trial::Here("shown > out\ngrep three out".to_owned())
                ),
                (12, "four\n", &Trial::Systemd("shown".to_owned())),
                (16, "five\n", &Trial::Left("it takes a cluster".to_owned())),
            ]
        );
        assert_eq!(
            found[0].script().as_deref(),
            Some("shown() {\none\ntwo\n}\nshown\n")
        );
    }

    #[test]
    fn nothing_is_passed_over() {
        for page in [
            "```bash\none\n```\n",
            "```sh\none\n",
            "<!-- tried with: true -->\n```sh\none\n```\n",
            "<!-- not tried: I had no time -->\n```sh\none\n```\n",
            "<!-- a remark -->\n```sh\none\n```\n",
            "<!-- tried with: shown -->\ntext\n```sh\none\n```\n",
        ] {
            assert!(blocks(page).is_err(), "{page}");
        }
    }
}
