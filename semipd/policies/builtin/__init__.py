"""The policies that ship, by the names of the entry points `semipd.policies`."""
