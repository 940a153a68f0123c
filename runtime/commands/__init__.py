"""Commands of the runtime, one file each. They parse, call one function, print."""
