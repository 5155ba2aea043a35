"""Books what requests take: tokens, time and money."""
