# Completion of vuserctl's command line in fish.
function __vuserctl_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    # The last word stands there as it was typed; its quote may still be open.
    set -l plain
    for end in '' '\'' '"'
        set plain (string unescape -- "$current$end")
        and break
    end
    set -l found (vuserctl __complete $words[2..-1] "$plain" 2>/dev/null)
    if set -q found[1]
        printf '%s\n' $found
    else
        __fish_complete_path "$plain"
    end
end
complete -c vuserctl -f -a '(__vuserctl_complete)'
