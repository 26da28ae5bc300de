"""The doctor: looks at a running stack through its outputs and says what is wrong with it."""
