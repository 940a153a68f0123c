"""Commands of the runtime, one file each. They parse options, call one function and print."""
