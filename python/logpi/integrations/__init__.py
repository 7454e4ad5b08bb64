"""The only files that know a framework by name; each imports it when used."""
