//! Recipes that are wrong about the stock components give their error text, word for word.
#![allow(clippy::unwrap_used)] // a test that fails should fail loudly

// Components, tokenizers, data sets, optimizers and stages register themselves; naming the crates links them.
use components as _;
use evaluation as _;
use hymba_plus::testing;
use recipes as _;
use training as _;

#[test]
fn the_recipes_that_they_change_are_right() {
    testing::assert_valid("broken/parts/*.yaml");
}

#[test]
fn broken_recipes_say_what_is_wrong() {
    let count = testing::golden("broken");
    assert!(count >= 92, "only {count} broken recipes");
}
