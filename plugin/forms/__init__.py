"""What an answer must look like: tool calls and objects of a schema, how models write them, and how they are read, held and compared."""
