"""Past one machine: files of texts on Ray Data, and the server on Ray Serve. Ray is imported where it is used."""
