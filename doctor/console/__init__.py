"""The console: a page on loopback that shows a stack live, and the server behind it."""
