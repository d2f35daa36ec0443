"""Who says how good videos are: a judge a world."""
