"""What is in an export: names, attributes and sizes, without what the files hold."""
