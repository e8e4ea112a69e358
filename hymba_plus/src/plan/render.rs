//! The plan as a table for people.
