"""The style sheet of a report."""

STYLE_SHEET = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f1f5f9; color: #1e293b; font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
header p { margin: 0; color: #64748b; font-size: 13px; letter-spacing: .04em; text-transform: uppercase; }
h1 { margin: 0 0 16px; font-size: 28px; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 0 0 4px; font-size: 17px; }
section, .tiles > div { background: #fff; border: 1px solid #e2e8f0; border-radius: 10px; }
section { margin-top: 18px; padding: 18px 20px; }
section > p { margin: 2px 0 10px; color: #64748b; font-size: 13.5px; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 10px; }
.tiles > div { padding: 10px 14px; }
@media (max-width: 640px) { .tiles { grid-template-columns: repeat(2, 1fr); } }
.tiles strong { display: block; font-size: 21px; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tiles span { color: #64748b; font-size: 12.5px; line-height: 1.3; display: block; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, "Segoe UI", Roboto, sans-serif !important; }
.scroll { max-height: 620px; overflow: auto; }
table { width: 100%; border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th { position: sticky; top: 0; background: #fff; color: #64748b; font-weight: 600; }
th, td { padding: 5px 8px; border-bottom: 1px solid #e9eef4; text-align: right; white-space: nowrap; }
.word { text-align: left; }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 180px; }
tbody tr:hover { background: #f8fafc; }
.chip { display: inline-block; width: 11px; height: 11px; margin-right: 7px; border-radius: 3px; vertical-align: -1px; }
.bar { display: inline-block; width: 44px; height: 7px; margin-right: 7px; border-radius: 4px; background: #eef2f7; }
.bar b { display: block; height: 7px; border-radius: 4px; background: #7b93b3; }
.bar + em { display: inline-block; min-width: 50px; font-style: normal; }
details { margin-top: 10px; font-size: 13px; }
summary { cursor: pointer; color: #475569; }
pre { margin: 8px 0 0; padding: 12px; overflow: auto; border-radius: 8px; background: #f8fafc; font-size: 12.5px; }
.none { color: #94a3b8; }
@media print { body { background: #fff; } .scroll { max-height: none; } section { break-inside: avoid; } }
"""
