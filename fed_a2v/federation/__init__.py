"""What runs at the sites (`client`) and on the server (`server`), and the messages between them (`protocol`)."""
