//! The edges of the API: files that are none, JSON, the editor's schema, the helpers for tests.

use std::panic::catch_unwind;

use hymba_plus::{
    config::{Diagnostics, LoadOptions, Recipe, RecipePath, json_schema},
    registry::Finding,
    serde_json::Value,
    testing,
};

use crate::{
    layers::{BASE, folder},
    support::{Corpus, Pipeline, layer},
};

fn refused(text: &str) -> Diagnostics {
    Recipe::from_yaml(text, &LoadOptions::default()).expect_err("a broken recipe")
}

#[test]
fn valid_recipes_are_valid() {
    testing::assert_valid("tests/config/valid/*.yaml");
    let recipe = testing::recipe("schema: 1\npipeline: [mamba, none]\n");
    assert!(recipe.section::<Pipeline>().expect("no mistake").is_some());
    assert!(recipe.section::<Corpus>().expect("no mistake").is_none());
}

#[test]
fn helpers_say_what_they_found_instead() {
    testing::assert_rejects("schema: 1\ntraning: {}\n", "2:1", "did you mean `training`?");
    testing::assert_rejects("schema: 1\ntraining: {steps: 0}\n", "training.steps", "at least 1");
    let said =
        |test: fn()| *catch_unwind(test).expect_err("a failed test").downcast::<String>().expect("a text");
    assert!(said(|| testing::assert_rejects("schema: 1\n", "1:1", "x")).contains("is accepted"));
    assert!(said(|| testing::assert_rejects("schema: 1\nx: 1\n", "1:1", "x")).contains("unknown key `x`"));
    assert!(said(|| testing::assert_rejects("schema: 1\nx: 1\n", "2:1", "y!")).contains("says \"y!\""));
    assert!(
        said(|| testing::assert_valid("tests/config/broken/tab.yaml")).contains("a tab in the indentation")
    );
    assert!(said(|| testing::assert_valid("tests/nothing/*.yaml")).contains("no file matches"));
    assert_eq!(testing::component::<layer>("{kind: mamba, d_state: 4}").kind, "mamba");
    assert!(said(|| drop(testing::component::<layer>("{kind: mamba, d_stat: 4}"))).contains("d_stat"));
}

#[test]
fn what_is_no_file_is_said_so() {
    let folder = folder(&[("run.yaml", BASE), ("big.yaml", &"# a long line\n".repeat(400_000))]);
    let said = |name: &str| {
        let options = LoadOptions { cwd: Some(folder.path().to_owned()), ..LoadOptions::default() };
        Recipe::load(name, &options).expect_err("no recipe").render(false, 100)
    };
    assert!(said("rum.yaml").contains("there is no file rum.yaml"), "{}", said("rum.yaml"));
    assert!(said("rum.yaml").contains("the nearest file there is `run.yaml`"));
    assert!(said(".").contains("is a folder"));
    assert!(said("big.yaml").contains("5600000 bytes"));
}

#[test]
fn problems_are_json_for_scripts() {
    let problems = refused("schema: 1\ntraining:\n  steps: 0\n  steps: 1\n  update: {kind: muon, lr: 1}\n");
    let json = problems.to_json();
    let first = &json[0];
    assert_eq!(first["code"], "out-of-range");
    assert_eq!((&first["line"], &first["column"], &first["length"]), (&3.into(), &10.into(), &1.into()));
    assert_eq!((&first["path"], &first["snippet"]), (&"training.steps".into(), &"  steps: 0".into()));
    assert_eq!(json[1]["related"]["line"], 3);
}

#[test]
fn problems_are_miette_reports_too() {
    let folder = folder(&[("a.yaml", "schema: 1\nx: 1\n"), ("b.yaml", "schema: 1\nextends: a.yaml\ny: 1\n")]);
    let problems =
        Recipe::load(folder.path().join("b.yaml"), &LoadOptions::default()).expect_err("two problems");
    assert_eq!(problems.len(), 2);
    let mut text = String::new();
    let handler = miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::unicode_nocolor());
    handler.render_report(&mut text, &problems).expect("a report");
    assert!(text.contains("hymba::unknown-key") && text.contains("a.yaml:2:1"), "{text}");
}

#[test]
fn many_problems_are_counted_and_the_first_are_shown() {
    let keys: Vec<String> = (0..500).map(|index| format!("key_{index}: 1")).collect();
    let problems = refused(&format!("schema: 1\n{}\n", keys.join("\n")));
    assert_eq!(problems.len(), 200);
    assert!(problems.summary().starts_with("500 problems"), "{}", problems.summary());
}

#[test]
fn no_depth_of_a_recipe_is_too_much_for_the_stack() {
    let mut text = "schema: 1\na0: &a0 [1]\n".to_owned();
    for level in 1..200 {
        let before = level - 1;
        text.push_str(&["a", &level.to_string(), ": &a", &level.to_string()].concat());
        text.push_str(&[" ", &"[".repeat(40), "*a", &before.to_string(), &"]".repeat(40), "\n"].concat());
    }
    assert!(refused(&text).to_string().contains("levels of nesting"));
    assert!(refused(&format!("schema: 1\na: {}", "[".repeat(100_000))).len() >= 1);
    assert!(
        refused(&format!(
            "schema: 1\n{}",
            (0..5_000).map(|level| " ".repeat(level) + "a:\n").collect::<String>()
        ))
        .len()
            >= 1
    );
    let set = vec![format!("{}=1", vec!["a"; 100_000].join("."))];
    let environment = vec![(format!("HYMBA__{}", vec!["A"; 100_000].join("__")), "1".to_owned())];
    let options = LoadOptions { set, environment, ..LoadOptions::default() };
    assert_eq!(Recipe::from_yaml("schema: 1\n", &options).expect_err("too deep").len(), 2);
}

#[test]
fn findings_are_shown_where_their_key_is() {
    let recipe = testing::recipe(BASE);
    let finding =
        |path: &str| Finding { path: path.into(), message: "no".into(), rule: String::new(), help: None };
    let place = |path: &str| {
        let problems = recipe.diagnose(vec![finding(path)]);
        problems.iter().map(|one| (one.line(), one.column())).next()
    };
    assert_eq!(place("training.update.lr"), Some((10, 29)));
    assert_eq!(place("network.layers[0].head_dim"), Some((7, 12)), "a default lies where its component is");
    assert_eq!(place("training.schedule.warmup"), Some((8, 1)));
    assert_eq!(place("corpus"), Some((1, 1)));
    assert!(recipe.refuse(Vec::new()).is_ok());
    assert_eq!(
        recipe.path(&RecipePath::new("../x/./y")),
        recipe.folder().parent().expect("a folder").join("x/y")
    );
}

#[test]
fn the_schema_for_editors_is_whole() {
    let schema = json_schema();
    let definitions = schema["$defs"].as_object().expect("definitions");
    for name in
        ["layer", "layer.attention", "layer.mamba", "update_rule.adamw", "network", "training.Schedule"]
    {
        assert!(definitions.contains_key(name), "{name} is missing");
    }
    assert_eq!(schema["$defs"]["layer.attention"]["properties"]["head_dim"]["default"], 64);
    assert!(
        schema["$defs"]["layer.attention"].get("required").is_none(),
        "a file may leave it to what it extends"
    );
    whole(&schema, definitions);
}

/// Every reference leads somewhere, and no slot is left.
fn whole(schema: &Value, definitions: &hymba_plus::serde_json::Map<String, Value>) {
    match schema {
        Value::Object(object) => {
            assert!(!object.contains_key("x-slot"));
            if let Some(Value::String(target)) = object.get("$ref") {
                let name = target.strip_prefix("#/$defs/").expect("a definition");
                assert!(definitions.contains_key(name), "{name} is missing");
            }
            object.values().for_each(|inner| whole(inner, definitions));
        }
        Value::Array(list) => list.iter().for_each(|inner| whole(inner, definitions)),
        _ => {}
    }
}
