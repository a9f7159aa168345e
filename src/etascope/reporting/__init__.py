"""Everything that shows a study: views collect what is shown, the other modules draw it."""
