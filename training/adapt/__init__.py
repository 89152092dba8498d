"""`clipkit adapt`: teach a frozen model a task from a few labelled images."""
