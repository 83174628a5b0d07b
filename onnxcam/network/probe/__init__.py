"""Facts about a file, measured by running it on a few pictures: its scores, its rows, and where its layers look."""
