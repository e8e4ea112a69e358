//! Every broken recipe gives its error text, word for word.

use hymba_plus::testing;

#[test]
fn broken_recipes_say_what_is_wrong() {
    let count = testing::golden("tests/config/broken");
    assert!(count >= 60, "only {count} broken recipes");
}
