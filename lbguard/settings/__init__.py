"""All settings: their groups, where their values come from, and what is checked across them."""
