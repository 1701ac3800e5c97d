//! A strict reader of the report's HTML: tags nest, attributes are quoted, text is escaped, names on the page are
//! unique and links within it lead somewhere. Stricter than browsers, which repair what they get.

use std::collections::{HashMap, HashSet};

/// Elements without content.
const VOID: [&str; 4] = ["meta", "br", "link", "hr"];

/// An element that was read.
#[derive(Debug)]
pub(super) struct Element {
    pub(super) name: String,
    pub(super) attributes: HashMap<String, String>,
}

/// What a page consists of.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) elements: Vec<Element>,
    /// All text, entities resolved.
    pub(super) text: String,
}

impl Page {
    /// How many elements have that name and, when not empty, that class among their classes.
    pub(super) fn count(&self, name: &str, class: &str) -> usize {
        let has = |element: &&Element| {
            let mut classes = element.attributes.get("class").map_or("", String::as_str).split_whitespace();
            element.name == name && (class.is_empty() || classes.any(|own| own == class))
        };
        self.elements.iter().filter(has).count()
    }
}

/// Reads a page, or says what is wrong with it.
pub(super) fn read(html: &str) -> Result<Page, String> {
    let mut rest = html.strip_prefix("<!DOCTYPE html>").ok_or("no document type")?;
    let mut page = Page { elements: Vec::new(), text: String::new() };
    let mut open: Vec<String> = Vec::new();
    while let Some(start) = rest.find('<') {
        page.text += &unescaped(&rest[..start])?;
        let end = tag_end(&rest[start..]).ok_or_else(|| format!("a tag does not end: {:.80}", &rest[start..]))?;
        let tag = &rest[start + 1..start + end];
        rest = &rest[start + end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            let opened = open.pop();
            if opened.as_deref() != Some(name) {
                return Err(format!("</{name}> closes {opened:?}"));
            }
            continue;
        }
        let element = element(tag)?;
        if element.name == "style" {
            rest = &rest[rest.find("</style>").ok_or("a style does not end")?..];
        }
        if !VOID.contains(&element.name.as_str()) {
            open.push(element.name.clone());
        }
        page.elements.push(element);
    }
    if !open.is_empty() || !rest.trim().is_empty() {
        return Err(format!("left open at the end: {open:?} {rest:?}"));
    }
    names(&page)?;
    Ok(page)
}

/// Position of the `>` that ends a tag: not one in quotes.
fn tag_end(tag: &str) -> Option<usize> {
    let mut quoted = false;
    tag.char_indices().find_map(|(at, c)| {
        quoted ^= c == '"';
        (c == '>' && !quoted).then_some(at)
    })
}

fn element(tag: &str) -> Result<Element, String> {
    let (name, mut rest) = tag.split_once(' ').unwrap_or((tag, ""));
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(format!("an odd tag: <{tag:.80}>"));
    }
    let mut attributes = HashMap::new();
    while !rest.trim().is_empty() {
        rest = rest.trim_start();
        let name_end = rest.find(['=', ' ']).unwrap_or(rest.len());
        let (attribute, after) = rest.split_at(name_end);
        if !attribute.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            return Err(format!("an odd attribute {attribute:?} of <{tag:.80}>"));
        }
        let mut value = String::new();
        rest = after;
        if let Some(quoted) = after.strip_prefix("=\"") {
            let end = quoted.find('"').ok_or("an attribute does not end")?;
            value = unescaped(&quoted[..end])?;
            rest = &quoted[end + 1..];
        }
        if attributes.insert(attribute.to_owned(), value).is_some() {
            return Err(format!("{attribute} twice in <{tag:.80}>"));
        }
    }
    Ok(Element { name: name.to_owned(), attributes })
}

fn unescaped(text: &str) -> Result<String, String> {
    let mut parts = text.split('&');
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (entity, after) = part.split_once(';').ok_or_else(|| format!("a bare & before {part:.40}"))?;
        whole.push(match entity {
            "lt" => '<',
            "gt" => '>',
            "amp" => '&',
            "quot" => '"',
            other => return Err(format!("an unknown entity {other:.40}")),
        });
        whole += after;
    }
    match whole.chars().find(|c| c.is_control() && *c != '\n') {
        Some(c) => Err(format!("a control character {c:?}")),
        None => Ok(whole),
    }
}

/// Names are unique, and what refers to one finds it.
fn names(page: &Page) -> Result<(), String> {
    let mut ids = HashSet::new();
    for id in page.elements.iter().filter_map(|element| element.attributes.get("id")) {
        if !ids.insert(id.as_str()) {
            return Err(format!("the id {id} twice"));
        }
    }
    for element in &page.elements {
        let within = element.attributes.get("href").and_then(|href| href.strip_prefix('#'));
        let named_by = element.attributes.get("aria-labelledby").map(String::as_str);
        if let Some(missing) = within.into_iter().chain(named_by).find(|id| !ids.contains(id)) {
            return Err(format!("nothing is called {missing}"));
        }
    }
    Ok(())
}

#[test]
fn broken_pages_are_refused() {
    let page = |body: &str| read(&format!("<!DOCTYPE html><html>{body}</html>"));
    assert!(page("<p id=\"a\">1 &lt; 2</p><meta a=\"b\">").is_ok());
    for body in [
        "<p>",
        "<p></b></p>",
        "1 & 2",
        "<p a=b></p>",
        "<p a=\"1\" a=\"2\"></p>",
        "<i id=\"x\"></i><i id=\"x\"></i>",
        "<a href=\"#x\"></a>",
        "<\"p\"></p>",
        "\u{1}",
    ] {
        assert!(page(body).is_err(), "{body}");
    }
}
