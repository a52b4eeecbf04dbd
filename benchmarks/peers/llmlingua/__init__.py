"""llmlingua 0.2.2 (MIT): its pinned packages, and the script that runs it in a process of its own."""
