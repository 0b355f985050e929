from gan_fast.cli import main

main()
